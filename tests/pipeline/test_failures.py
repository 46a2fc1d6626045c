"""Promise 4: whatever ends a process ends the run, with one message that names it."""

import re
import signal
import socket
import time

import pytest
from conftest import ALRPC

HOST = re.escape(socket.gethostname())
LONG = ["launch", "--stages", "3", "--set", "train.epochs=5000", "--out", "run", "--quiet"]

pytestmark = pytest.mark.timeout(180)


def start(commands, *arguments):
    return commands.start(ALRPC, *arguments)


def has_trained(commands):
    metrics = commands.folder / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") > 5


def ending(process, seconds: float = 10) -> tuple[int, str]:
    """The exit code and the one message of a process that ends in time."""
    began = time.monotonic()
    out, err = process.communicate(timeout=seconds)
    assert time.monotonic() - began < seconds
    assert out == ""
    return process.returncode, err.strip()


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_a_killed_process_is_named_with_signal_rank_host_and_log(commands, until, rank):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    commands.workers()[rank].send_signal(signal.SIGKILL)
    code, message = ending(process)
    who = f"stage {rank} \\(rank {rank}" if rank else "the coordinator \\(rank 0"
    log = f"run/logs/stage-{rank}.log" if rank else "run/logs/coordinator.log"
    assert re.fullmatch(f"alrpc: {who}, host {HOST}\\) was killed by SIGKILL; log: {log}", message)
    assert code == 1 and (commands.folder / log).exists()
    assert not (commands.folder / "run" / "summary.json").exists()


def test_a_process_killed_while_it_starts_is_named(commands, until):
    process = start(commands, *LONG)
    until(lambda: 2 in commands.workers())
    commands.workers()[2].send_signal(signal.SIGKILL)
    code, message = ending(process)
    assert re.fullmatch(f"alrpc: stage 2 \\(rank 2, host {HOST}\\) was killed by SIGKILL; log: run/logs/stage-2.log", message)
    assert code == 1


def test_a_killed_launcher_leaves_nobody_behind(commands, until):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    process.send_signal(signal.SIGKILL)
    _, message = ending(process)
    assert re.fullmatch(f"alrpc: the launcher \\(pid {process.pid}, host {HOST}\\) was killed; the run has ended", message)
    assert commands.leftovers(10) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_every_process(commands, until, number):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    process.send_signal(number)
    assert ending(process) == (128 + number, f"alrpc: ended by {number.name}")
    assert commands.leftovers(5) == []


def test_a_stage_that_raises_is_named_with_its_exception(commands):
    process = start(
        commands, "launch", "--stages", "4", "--set", "model.name=own_blocks:build_with_fuse", "--out", "run", "--quiet"
    )
    code, message = ending(process, 60)
    cause = "ValueError: the fuse has blown"
    assert re.fullmatch(f"alrpc: stage 2 \\(rank 2, host {HOST}\\) failed: {cause}; log: run/logs/stage-2.log", message)
    assert code == 1
    log = (commands.folder / "run" / "logs" / "stage-2.log").read_text()
    assert "Traceback" in log and cause in log


def test_a_loss_that_is_not_finite_names_the_component_and_step_where_it_began(commands):
    explode = ["--set", "train.optimizer=sgd", "--set", "train.lr=1e30", "--set", "train.schedule=constant"]
    process = start(commands, "launch", "--stages", "4", *explode, "--out", "run", "--quiet")
    code, message = ending(process, 60)
    assert code == 1
    assert "stage 1 (rank 1" in message and re.search(r"loss of component 1 is (nan|inf) at step \d", message)


@pytest.mark.parametrize("override", ["data.name=own_blocks:no_dataset", "data.name=mnist"])
def test_a_run_that_cannot_begin_leaves_no_directory(commands, override):
    for split in ("train", "t10k"):
        for part in ("images-idx3", "labels-idx1"):
            file = commands.folder / "MNIST" / "raw" / f"{split}-{part}-ubyte"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"not digits")
    process = start(commands, "launch", "--set", override, "--set", "data.root=.", "--out", "run", "--quiet")
    code, message = ending(process, 60)
    assert code == 1 and message.startswith("alrpc: data.") and "\n" not in message
    assert not (commands.folder / "run").exists()
