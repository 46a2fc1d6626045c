"""Losses and gradients that are not finite: nothing of them reaches a checkpoint, and the last good one is named."""

import re

import pytest
import torch
from conftest import read_summary
from safetensors.torch import load_file

BAD = ("--set", "model.name=own_blocks:build_bad", "--set", "train.epochs=2", "--set", "checkpoint.every=10", "--quiet")
LAUNCH = ["launch", "--stages", "2", "--max-restarts", "3"]
WRITTEN_OR_NEXT = r"(\S+ of component-002 is not finite after|loss of component 2 is nan at) step 30"
"""Whoever sees it first: the thread that writes the checkpoint, or the next step."""


@pytest.mark.parametrize(
    ("command", "forward", "step", "cause", "last"),
    [
        (LAUNCH, "true", 28, "loss of component 2 is nan at step 27", 23),
        (["train"], "false", 28, "loss of component 2 is nan at step 28", 23),
        (LAUNCH, "false", 30, WRITTEN_OR_NEXT, 23),
        (["train"], "false", 30, WRITTEN_OR_NEXT, 23),
        ([*LAUNCH, "--set", "data.validation=0.1"], "false", 42, r"\S+ of component-002 is not finite after step 42", 40),
        (["train"], "true", 5, "loss of component 2 is nan at step 4", None),
    ],
    ids=[
        "loss",
        "gradient",
        "gradient-before-a-checkpoint",
        "the-same-in-one-process",
        "before-the-last-checkpoint",
        "before-any-checkpoint",
    ],
)
def test_a_run_stops_and_names_the_last_good_checkpoint(commands, command, forward, step, cause, last):
    done = commands.alrpc(*command, *BAD, "--set", f"model.forward={forward}", "--set", f"model.step={step}", "--out", "run")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    offer = f"its last complete checkpoint is that of step {last}; --resume run goes on" if last else "there is no checkpoint"
    assert re.search(f"{cause}.*; {offer}", done.stderr), done.stderr
    assert "restart" not in done.stderr  # it would come to the same
    for file in commands.folder.glob("run/checkpoints/*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values() if tensor.is_floating_point())


@pytest.mark.parametrize("forward", ["true", "false"], ids=["loss", "gradient"])
def test_updates_can_be_skipped_and_are_counted_alike_in_both_engines(commands, forward):
    options = (*BAD, "--set", f"model.forward={forward}", "--set", "model.step=30", "--set", "train.nonfinite=skip")
    for command in (["train"], ["launch", "--stages", "2"]):
        done = commands.alrpc(*command, *options, "--out", command[0])
        assert done.returncode == 0, done.stderr
    one, other = (read_summary(commands.folder / out) for out in ("train", "launch"))
    assert one["parameters_sha256"] == other["parameters_sha256"]
    assert one["skipped_updates"] == other["skipped_updates"] == (3 if forward == "true" else 1)  # it, and those after it
    for number in (1, 2, 3, 4):
        state = load_file(commands.folder / "train" / "checkpoints" / "step-00000046" / f"component-{number:03d}.safetensors")
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.dtype == torch.float32)
