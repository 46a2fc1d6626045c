"""Promise 1: pipelined training equals sequential training bit for bit, whatever the number of stages."""

import pytest
from conftest import read_summary

DIGITS = ["--set", "model.name=own_blocks:build", "--set", "train.epochs=3", "--set", "data.batch_size=60", "--quiet"]
SEQUENCES = [
    *("--set", "model.name=own_sequences:build", "--set", "data.name=own_sequences:load", "--set", "train.epochs=3"),
    *("--set", "data.batch_size=32", "--set", "train.accumulate=3", "--set", "train.clip_norm=0.5", "--quiet"),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("options", "variants"),
    [
        # Dropout, batch norm, and a last micro-batch of 57 instead of 60.
        (DIGITS, {"1": [], "2": ["--set", "pipeline.split=[1,3]"], "4": ["--set", "pipeline.window=1"]}),
        # Lengths that differ from packet to packet, a mask, an LSTM's state, accumulation, clipping.
        (SEQUENCES, {"3": []}),
    ],
    ids=["digits", "sequences"],
)
def test_every_number_of_stages_gives_the_bits_of_the_sequential_reference(commands, options, variants):
    trained = commands.alrpc("train", *options, "--out", "reference")
    assert trained.returncode == 0, trained.stderr
    reference = read_summary(commands.folder / "reference")
    assert reference["engine"] == "sequential" and reference["exits"][0] > 0.4
    for stages, more in variants.items():
        launched = commands.alrpc("launch", "--stages", stages, *options, *more, "--out", stages)
        assert launched.returncode == 0, launched.stderr
        summary = read_summary(commands.folder / stages)
        assert (summary["engine"], summary["stages"]) == ("pipeline", int(stages))
        assert summary["parameters_sha256"] == reference["parameters_sha256"]
        assert summary["exits"] == reference["exits"]
        assert summary["parameters"] == reference["parameters"]
        assert summary["steps"] == reference["steps"]


@pytest.mark.timeout(180)
def test_a_regression_runs_through_the_pipeline(commands):
    options = ["--set", "model.name=own_blocks:build_for_regression", "--set", "data.name=own_blocks:regression"]
    options += ["--set", "train.epochs=2", "--quiet"]
    assert commands.alrpc("train", *options, "--out", "reference").returncode == 0
    launched = commands.alrpc("launch", "--stages", "2", *options, "--out", "pipeline")
    assert launched.returncode == 0, launched.stderr
    one, other = (read_summary(commands.folder / name) for name in ("reference", "pipeline"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
    assert one["test_mse"] == one["exits"][-1] and "test_accuracy" not in one
