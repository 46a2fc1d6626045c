"""Promise 4: whatever ends a process ends the run, with one message that names it."""

import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from conftest import ALRPC, patience

from alrpc.rundir import RESTARTS, read_reached

HOST = re.escape(socket.gethostname())
LONG = ["launch", "--stages", "3", "--set", "train.epochs=5000", "--out", "run", "--quiet"]

OFFER = r"(there is no checkpoint of it|its last complete checkpoint is that of step \d+; --resume run goes on from it)"


def start(commands, *arguments):
    return commands.start(ALRPC, *arguments)


def has_trained(commands):
    """Whether every stage was heard to train; it is what a message can tell of one that is dead."""
    packets = read_reached(commands.folder / "run")["packets"].values()
    return len(packets) == 3 and all("train packet" in packet for packet in packets)


def ending(process, seconds: float = 10) -> tuple[int, str]:
    """The exit code and the one message of a process that ends in time."""
    out, err = process.communicate(timeout=patience(seconds))
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
    last = r"last packet: \w+ packet of step \d+, epoch \d+; " if rank else ""
    assert re.fullmatch(f"alrpc: {who}, host {HOST}\\) was killed by SIGKILL; {last}log: {log}; {OFFER}", message)
    assert code == 1 and (commands.folder / log).exists()
    assert not (commands.folder / "run" / "summary.json").exists()


@pytest.fixture
def no_memory():
    """A control group whose processes may hold no more memory."""
    group = Path("/sys/fs/cgroup/memory/alrpc-test")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
    except OSError:
        pytest.skip("needs root, and Linux' control group of memory, version 1")
    yield group
    group.rmdir()


def test_a_process_that_linux_kills_for_want_of_memory_is_told_apart(commands, until, no_memory):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    (no_memory / "cgroup.procs").write_text(str(commands.workers()[3].pid))
    code, message = ending(process, 60)  # it is killed when it next takes a page, and not before
    assert "stage 3 (rank 3, " in message and "was killed by SIGKILL, as Linux does when there is no memory left; " in message
    assert code == 1


def test_a_process_killed_while_it_starts_is_named(commands, until):
    process = start(commands, *LONG)
    until(lambda: 2 in commands.workers())
    commands.workers()[2].send_signal(signal.SIGKILL)
    code, message = ending(process)
    who = f"stage 2 \\(rank 2, host {HOST}\\)"
    assert re.fullmatch(f"alrpc: {who} was killed by SIGKILL; log: run/logs/stage-2.log; there is no checkpoint of it", message)
    assert code == 1


def test_a_killed_launcher_leaves_nobody_behind(commands, until):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    process.send_signal(signal.SIGKILL)
    _, message = ending(process)
    assert re.fullmatch(f"alrpc: the launcher \\(pid {process.pid}, host {HOST}\\) was killed; the run has ended", message)
    assert commands.leftovers(patience(10)) == []


def test_an_interrupted_launcher_ends_every_process(commands, until):
    process = start(commands, *LONG)
    until(lambda: has_trained(commands))
    process.send_signal(signal.SIGINT)
    code, message = ending(process)
    assert code == 130 and re.fullmatch(f"alrpc: ended by SIGINT; {OFFER}", message)
    assert commands.leftovers(patience(5)) == []


def test_a_stage_that_raises_is_named_with_its_exception(commands):
    process = start(
        commands, "launch", "--stages", "4", "--set", "model.name=own_blocks:build_with_fuse", "--out", "run", "--quiet"
    )
    code, message = ending(process, 60)
    cause = "ValueError: the fuse has blown"
    said = (
        f"stage 2 \\(rank 2, host {HOST}\\) failed: {cause}; last packet: .*; log: run/logs/stage-2.log; there is no checkpoint"
    )
    assert re.match(f"alrpc: {said}", message)
    assert code == 1
    log = (commands.folder / "run" / "logs" / "stage-2.log").read_text()
    assert "Traceback" in log and cause in log


@pytest.mark.parametrize("engine", [["train"], ["launch", "--stages", "2", "--max-restarts", "2"]], ids=["train", "launch"])
def test_a_single_sample_left_over_for_batch_norm_is_told_with_what_would_do(commands, engine):
    overrides = ("model.name=own_blocks:build", "data.batch_size=1436")  # of 1437 samples
    fields = [part for override in overrides for part in ("--set", override)]
    code, message = ending(start(commands, *engine, *fields, "--out", "run", "--quiet"), 60)
    assert code == 1 and "data.batch_size: a micro-batch has one sample, of which batch norm knows no variance" in message
    assert "give a size by which no single sample is left" in message and message.count("\n") == 0
    assert not (commands.folder / "run" / RESTARTS).exists()


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


LONELY = """
import os
from alrpc.pipeline import rpc
rpc.JOIN_TIMEOUT = 2.0
os.environ.update(RANK="0", WORLD_SIZE="2", TP_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo", ALRPC_STORE="store")
rpc.join(0, 2)
"""


def test_a_process_does_not_wait_for_ever_for_one_that_has_ended_before_they_met(commands):
    lonely = commands.run(sys.executable, "-c", LONELY)
    assert lonely.returncode == 1 and "Disconnected: the processes did not all meet: " in lonely.stderr
