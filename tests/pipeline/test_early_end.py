"""A run with a validation split that ends early, in processes: the sequential engine's end, from the start or resumed."""

import json
import shutil

from conftest import read_summary

OPTIONS = [
    *("--set", "data.validation=0.1", "--set", "train.epochs=30", "--set", "train.patience=1", "--set", "train.lr=0.02"),
    *("--set", "objective.name=classifier"),
    *("--set", "train.schedule=constant", "--set", "checkpoint.every=8", "--set", "checkpoint.keep=99", "--quiet"),
]
SAME = ("test_accuracy", "exits", "validation_accuracy", "tested_epoch", "ended_early", "parameters_sha256", "steps", "epochs")


def test_a_pipeline_ends_early_and_is_tested_as_in_one_process_also_when_it_is_resumed(commands):
    trained = commands.alrpc("train", *OPTIONS, "--out", "reference")
    assert trained.returncode == 0, trained.stderr
    reference = read_summary(commands.folder / "reference")
    assert reference["ended_early"] and reference["tested_epoch"] == reference["epochs"] - 1 >= 1
    assert f"of epoch {reference['tested_epoch']} after" in trained.stdout

    launched = commands.alrpc("launch", "--stages", "2", *OPTIONS, "--out", "launched", "--calibrate")
    assert launched.returncode == 0, launched.stderr
    calibration = json.loads((commands.folder / "launched" / "calibration.json").read_text())
    assert calibration["parameters_sha256"] == reference["parameters_sha256"] and calibration["split"] == "validation"

    run = (
        commands.folder / "resumed"
    )  # in the middle of the epoch after the best one, whose checkpoint the reference has written
    shutil.copytree(commands.folder / "reference", run)
    (run / "summary.json").unlink()
    middle = reference["tested_epoch"] * 21 // 8 * 8 + 8
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > middle:
            shutil.rmtree(checkpoint)
    resumed = commands.alrpc("launch", "--resume", "resumed", "--stages", "3", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    summaries = [read_summary(commands.folder / name) for name in ("launched", "resumed")]
    assert [summary["resumed_at_step"] for summary in summaries] == [0, middle]
    for summary in summaries:
        assert {name: summary[name] for name in SAME} == {name: reference[name] for name in SAME}
