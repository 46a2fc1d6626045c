"""Processes are killed at random moments; the run comes back by itself and ends as if nothing had happened.

`pytest tests/chaos --kills 30 --chaos-seed 1` does it for longer; whatever the seed, it is printed.
"""

import random
import signal
import time

import pytest
from conftest import ALRPC, Commands, read_summary

FIELDS = ("--stages", "2", "--set", "train.epochs=12", "--set", "checkpoint.every=10", "--quiet")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("undisturbed"))
    done = commands.alrpc("launch", *FIELDS, "--out", "run")
    assert done.returncode == 0, done.stderr
    return read_summary(commands.folder / "run")


def test_whichever_process_is_killed_whenever_the_result_is_the_same(undisturbed, commands, request):
    kills, seed = request.config.getoption("--kills"), request.config.getoption("--chaos-seed")
    print(f"{kills} kills, seed {seed}")
    dice = random.Random(seed)
    for number in range(kills):
        out = f"run-{number}"
        launched = commands.start(ALRPC, "launch", *FIELDS, "--max-restarts", "1", "--out", out)
        metrics = commands.folder / out / "metrics.jsonl"
        end = time.monotonic() + 60
        while not (metrics.exists() and '"start"' in metrics.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 0.8 * undisturbed["steps"] * 64 / undisturbed["samples_per_second"]))
        rank = dice.randrange(3)
        victim = commands.workers()[rank]
        victim.send_signal(signal.SIGKILL)
        _, errors = launched.communicate(timeout=90)
        assert launched.returncode == 0, errors
        who = f"stage {rank} (rank {rank}, " if rank else "the coordinator (rank 0, "
        assert f"{who}" in errors and "was killed by SIGKILL" in errors and "restart 1 of 1, from " in errors, errors
        summary = read_summary(commands.folder / out)
        assert summary["parameters_sha256"] == undisturbed["parameters_sha256"], f"kill {number} with seed {seed}"
        (restart,) = summary["restarts"]
        assert "was killed by SIGKILL" in restart["cause"] and restart["step"] == summary["resumed_at_step"]
        assert 0 <= restart["repeated_steps"] <= summary["steps"]


def test_a_run_that_fails_more_often_than_allowed_ends_with_the_cause_and_keeps_its_checkpoints(commands):
    launched = commands.start(ALRPC, "launch", *FIELDS, "--out", "run")
    end = time.monotonic() + 60
    while not list(commands.folder.glob("run/checkpoints/*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.02)
    commands.workers()[2].send_signal(signal.SIGKILL)
    _, errors = launched.communicate(timeout=60)
    assert launched.returncode == 1 and "stage 2 (rank 2, " in errors and "restart" not in errors
    assert list(commands.folder.glob("run/checkpoints/*/manifest.json"))
    assert not (commands.folder / "run" / "summary.json").exists()
