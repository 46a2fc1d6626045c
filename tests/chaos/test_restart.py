"""Processes are killed, frozen and denied their disk at random moments; the run comes back and ends as if nothing had happened.

`pytest tests/chaos --chaos 30 --chaos-seed 1` does each of these 30 times; whatever the seed, it is printed.
"""

import random
import resource
import signal
import time

import pytest
from conftest import ALRPC, LIMIT, Commands, read_summary

from alrpc.rundir import read_reached

TIMEOUT = 6  # of health
EPOCHS = ("--set", "train.epochs=8", "--set", "checkpoint.every=10", "--quiet")
FIELDS = ("launch", "--stages", "2", *EPOCHS, "--set", f"health.timeout={TIMEOUT}")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("undisturbed"))
    done = commands.alrpc(*FIELDS, "--out", "run")
    assert done.returncode == 0, done.stderr
    return read_summary(commands.folder / "run")


def pytest_generate_tests(metafunc):
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(1, metafunc.config.getoption("--chaos") + 1))


@pytest.fixture
def dice(request, turn):
    seed = request.config.getoption("--chaos-seed")
    print(f"seed {seed}")
    return random.Random(f"{seed} {request.node.name}")


def wait_for(condition, pause=0.02, seconds=LIMIT):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(pause)
    return value


def has_begun(run):
    metrics = run / "metrics.jsonl"
    return metrics.exists() and '"start"' in metrics.read_text()


def wait_for_some_moment(run, dice, undisturbed):
    """By steps, since a machine is not always equally fast; they are noted some times a second."""
    assert wait_for(lambda: has_begun(run))
    step = dice.uniform(0, 0.7 * undisturbed["steps"])
    assert wait_for(lambda: read_reached(run)["step"] >= step)
    time.sleep(dice.uniform(0, 0.2))


def wait_for_a_checkpoint_half_written(run, dice, undisturbed):
    """One of the later half at the most: whoever looks too seldom on a busy machine to see one strikes without."""
    step = dice.uniform(0, 0.5 * undisturbed["steps"])

    def half_written():
        begun = sorted(run.glob("checkpoints/step-*"))
        return begun and saved_step(begun[-1]) >= step and not (begun[-1] / "manifest.json").exists()

    assert wait_for(lambda: half_written() or last_step(run) >= 0.7 * undisturbed["steps"], 0)


@pytest.mark.parametrize(
    "wait", [wait_for_some_moment, wait_for_a_checkpoint_half_written], ids=["any-moment", "in-checkpoint"]
)
def test_whichever_process_is_killed_whenever_the_result_is_the_same(undisturbed, commands, dice, wait):
    launched = commands.start(ALRPC, *FIELDS, "--max-restarts", "1", "--out", "run")
    rank = dice.randrange(3)
    assert wait_for(lambda rank=rank: rank in commands.workers())
    victim = commands.workers()[rank]
    wait(commands.folder / "run", dice, undisturbed)
    victim.send_signal(signal.SIGKILL)
    _, errors = launched.communicate(timeout=LIMIT)
    assert launched.returncode == 0, errors
    who = f"stage {rank} (rank {rank}, " if rank else "the coordinator (rank 0, "
    assert f"{who}" in errors and "was killed by SIGKILL" in errors and "restart 1 of 1, from " in errors, errors
    summary = read_summary(commands.folder / "run")
    assert summary["parameters_sha256"] == undisturbed["parameters_sha256"]
    (restart,) = summary["restarts"]
    assert "was killed by SIGKILL" in restart["cause"] and restart["step"] == summary["resumed_at_step"]
    assert 0 <= restart["repeated_steps"] <= summary["steps"]


@pytest.mark.parametrize("seconds", [TIMEOUT / 3, None], ids=["for-a-while", "for-good"])
def test_whichever_process_is_frozen_whenever_the_result_is_the_same(undisturbed, commands, dice, seconds):
    launched = commands.start(ALRPC, *FIELDS, "--max-restarts", "1", "--out", "run")
    wait_for_some_moment(commands.folder / "run", dice, undisturbed)
    rank = dice.randrange(3)
    victim = commands.workers()[rank]
    victim.send_signal(signal.SIGSTOP)
    if seconds is not None:
        time.sleep(seconds)
        victim.send_signal(signal.SIGCONT)
    _, errors = launched.communicate(timeout=LIMIT)
    assert launched.returncode == 0, errors
    if seconds is None:
        assert "frozen" in errors and f"(rank {rank}, host " in errors and "restart 1 of 1" in errors, errors
    else:
        assert errors == ""
    assert read_summary(commands.folder / "run")["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_whichever_process_is_denied_its_disk_the_result_is_the_same(undisturbed, commands, dice):
    launched = commands.start(ALRPC, *FIELDS, "--out", "run")
    wait_for_some_moment(commands.folder / "run", dice, undisturbed)
    victim = commands.workers()[dice.randrange(3)].pid
    resource.prlimit(victim, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # no file may have more than no bytes
    time.sleep(dice.uniform(0.2, 1))
    resource.prlimit(victim, resource.RLIMIT_FSIZE, UNLIMITED)
    _, errors = launched.communicate(timeout=LIMIT)
    if launched.returncode:  # it was the run's end that could not be written
        assert "File too large" in errors and errors.rstrip().endswith("--resume run goes on from it"), errors
        assert commands.alrpc("launch", "--resume", "run", "--quiet").returncode == 0
    assert read_summary(commands.folder / "run")["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_a_run_killed_on_every_number_of_stages_goes_on_on_another(undisturbed, commands, dice):
    """From four stages to two, to three, to one process."""
    run = commands.folder / "run"
    start = ["launch", "--stages", "4", *EPOCHS, "--out", "run"]
    for stages, step in ((4, 10), (2, 50), (3, 95)):
        launched = commands.start(ALRPC, *start)
        reached = step + dice.randrange(30)
        wait_for(lambda run=run, reached=reached: last_step(run) >= reached, 0)
        commands.workers()[dice.randrange(stages + 1)].send_signal(signal.SIGKILL)
        launched.communicate(timeout=LIMIT)
        assert launched.returncode == 1
        after = {4: 2, 2: 3}.get(stages)
        start = ["launch", "--stages", str(after), "--resume", "run", "--quiet"]
    alone = commands.start(ALRPC, "train", "--resume", "run", "--quiet")
    wait_for(lambda run=run, reached=reached: last_step(run) >= reached + 15, 0)
    alone.kill()
    alone.communicate(timeout=LIMIT)
    done = commands.alrpc("train", "--resume", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    assert read_summary(run)["parameters_sha256"] == undisturbed["parameters_sha256"]


def saved_step(checkpoint):
    return int(checkpoint.name.removeprefix("step-"))


def last_step(run):
    return max((saved_step(path.parent) for path in run.glob("checkpoints/*/manifest.json")), default=0)


def test_a_run_that_fails_more_often_than_allowed_ends_with_the_cause_and_keeps_its_checkpoints(commands):
    launched = commands.start(ALRPC, *FIELDS, "--out", "run")
    wait_for(lambda: list(commands.folder.glob("run/checkpoints/*/manifest.json")))
    commands.workers()[2].send_signal(signal.SIGKILL)
    _, errors = launched.communicate(timeout=LIMIT)
    assert launched.returncode == 1 and "stage 2 (rank 2, " in errors and "restart" not in errors
    assert "its last complete checkpoint is that of step " in errors
    assert list(commands.folder.glob("run/checkpoints/*/manifest.json"))
    assert not (commands.folder / "run" / "summary.json").exists()
