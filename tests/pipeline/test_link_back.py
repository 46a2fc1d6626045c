"""An objective with feedback in a pipeline: the same bits, in mid-epoch too, no deadlock, and no silent hang."""

import re
import shutil
import signal
import socket
import time

import pytest
from conftest import ALRPC, LIMIT, read_summary

from alrpc.rundir import read_reached

SYNTHETIC = ["--set", "objective.name=synthetic", "--set", "objective.synthesiser_width=16"]
TARGETS = ["--set", "objective.name=target_propagation", "--set", "objective.inverse_width=16"]
FIELDS = [  # batch norm, dropout, a last micro-batch of 57 instead of 60, and checkpoints in the middle of an accumulation
    *("--set", "model.name=own_blocks:build", "--set", "train.epochs=2", "--set", "data.batch_size=60"),
    *("--set", "train.accumulate=5", "--set", "train.clip_norm=0.5"),
    *("--set", "checkpoint.every=31", "--set", "checkpoint.keep=9", "--quiet"),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("objective", "delay", "window"), [(SYNTHETIC, 1, 1), (TARGETS, 2, 3)], ids=["synthetic-1-1", "targets-2-3"]
)
def test_the_bits_are_those_of_the_sequential_engine_also_after_a_resume_in_mid_epoch(commands, objective, delay, window):
    options = [*objective, *FIELDS, "--set", f"objective.delay={delay}"]
    trained = commands.alrpc("train", *options, "--out", "reference")
    assert trained.returncode == 0, trained.stderr
    reference = read_summary(commands.folder / "reference")
    launched = commands.alrpc("launch", "--stages", "4", *options, "--set", f"pipeline.window={window}", "--out", "launched")
    assert launched.returncode == 0, launched.stderr
    for source, command in (("launched", ["launch", "--stages", "2"]), ("launched", ["train"])):
        run = commands.folder / "resumed"
        shutil.copytree(commands.folder / source, run)
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints" / "step-00000048")
        done = commands.alrpc(*command, "--resume", "resumed", "--set", "model.name=own_blocks:build", "--quiet")
        assert done.returncode == 0, done.stderr
        resumed = read_summary(run)
        assert resumed["resumed_at_step"] == 31
        for summary in (read_summary(commands.folder / "launched"), resumed):
            assert summary["parameters_sha256"] == reference["parameters_sha256"] and summary["exits"] == reference["exits"]
        shutil.rmtree(run)


@pytest.mark.timeout(180)
def test_a_stage_that_dies_while_another_waits_for_its_feedback_is_named(commands, until):
    fields = ["model.name=own_blocks:build_slow", "model.seconds=1000", "pipeline.window=50", "objective.delay=3"]
    options = [part for field in fields for part in ("--set", field)]
    process = commands.start(ALRPC, "launch", "--stages", "2", *SYNTHETIC, *options, "--out", "run", "--quiet")
    until(lambda: read_reached(commands.folder / "run")["packets"].get("1", "").startswith("train packet of step 7"))
    time.sleep(1)
    assert read_reached(commands.folder / "run")["packets"]["1"].startswith("train packet of step 7")  # 3 after the slow one
    commands.workers()[2].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    out, message = process.communicate(timeout=LIMIT)
    assert time.monotonic() - killed < 10 and process.returncode == 1 and out == ""
    who = rf"alrpc: stage 2 \(rank 2, host {re.escape(socket.gethostname())}\) was killed by SIGKILL; last packet: train packet of"
    assert re.match(f"{who} step 4, epoch 1; log: run/logs/stage-2.log; ", message) and message.count("\n") == 1, message
