"""SIGTERM: a checkpoint first, then the end, with an exit code that is not failure's; and the run goes on from there."""

import re
import signal
import time

import pytest
from conftest import ALRPC, LIMIT, PATH, Commands, free_port, patience, read_summary

TRY_AGAIN = 75  # EX_TEMPFAIL
FIELDS = ("--set", "train.epochs=8", "--quiet")


def has_trained(folder, lines=3):
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") > lines


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("undisturbed"))
    done = commands.alrpc("train", *FIELDS, "--out", "run")
    assert done.returncode == 0, done.stderr
    return read_summary(commands.folder / "run")


def check_that_it_goes_on(commands, undisturbed, errors):
    step = int(re.search(r"ended by SIGTERM after step (\d+) of 184", errors)[1])
    assert f"its last complete checkpoint is that of step {step}; --resume run goes on from it" in errors
    assert not (commands.folder / "run" / "summary.json").exists()
    assert not (commands.folder / "run" / "logs" / "stop").exists()
    done = commands.alrpc("train", "--resume", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    resumed = read_summary(commands.folder / "run")
    assert resumed["parameters_sha256"] == undisturbed["parameters_sha256"] and resumed["resumed_at_step"] == step


@pytest.mark.parametrize("whom", ["launcher", "everybody", "the-only-process"])
def test_whoever_is_told_to_end_takes_a_checkpoint_first(commands, undisturbed, until, whom):
    command = ["train"] if whom == "the-only-process" else ["launch", "--stages", "2", "--max-restarts", "2"]
    process = commands.start(ALRPC, *command, *FIELDS, "--out", "run")
    until(lambda: has_trained(commands.folder))
    for each in [process, *(commands.workers().values() if whom == "everybody" else [])]:
        each.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == TRY_AGAIN and errors.count("\n") == 1, errors
    check_that_it_goes_on(commands, undisturbed, errors)


def test_one_stage_that_is_told_to_end_is_enough_under_torchrun_too(commands, undisturbed, until):
    torchrun = ["torchrun", "--nproc-per-node", "3", "--master-port", free_port(), "-m", "alrpc.worker"]
    process = commands.start(*torchrun, *FIELDS, "--out", "run", PATH=PATH, OMP_NUM_THREADS="1")
    until(lambda: has_trained(commands.folder))
    commands.workers()[2].send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 1  # torchrun's own
    check_that_it_goes_on(commands, undisturbed, next(line for line in errors.splitlines() if line.startswith("alrpc: ")))


def test_without_time_for_a_checkpoint_the_run_ends_as_by_any_signal(commands, until):
    slow = ["--set", "model.name=own_blocks:build_slow", "--set", "model.step=30", "--set", "model.seconds=60"]
    options = ["--stages", "2", "--set", "train.epochs=2", "--set", "checkpoint.grace=1", "--out", "run", "--quiet"]
    process = commands.start(ALRPC, "launch", *options, *slow)
    until(lambda: (commands.folder / "run" / "checkpoints" / "step-00000023" / "manifest.json").exists())
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 143 and time.monotonic() - told < patience(8)
    offer = "its last complete checkpoint is that of step 23; --resume run goes on from it"
    assert errors == f"alrpc: ended by SIGTERM; {offer}\n"
