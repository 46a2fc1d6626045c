"""`alrpc evaluate`: the scores of the run's own evaluation again, and those on other data, prepared as the run's."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import small_data
from click.testing import CliRunner, Result
from conftest import read_summary
from test_predictor import IMAGES, TEXTS, make_old

import alrpc
from alrpc.cli.main import main
from alrpc.config import load_config
from alrpc.runtime.run import run_sequentially


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def measured(*arguments: str | Path) -> dict:
    done = ask(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def scores(result: dict) -> list[float]:
    return [each["accuracy"] for each in result["exits"]]


def test_the_scores_are_those_of_the_last_evaluation_of_a_run_of_0_1_too(run):
    result = measured(run)
    assert scores(result) == read_summary(run)["exits"] and result["samples"] == 360 and result["step"] == 46
    assert [each["exit"] for each in measured(run, "--exit", "1")["exits"]] == [1]
    shown = ask(run, "--step", "40")
    assert shown.exit_code == 0 and "360 test samples of digits, step 40" in shown.stdout, shown.output
    make_old(run)
    assert scores(measured(run)) == scores(result)


def test_the_best_epoch_is_measured_unless_another_checkpoint_is_asked_for(run, tmp_path):
    assert "--step: got best, but" in ask(run, "--step", "best").stderr
    assert "'worst' is neither best, nor last" in ask(run, "--step", "worst").stderr
    fields = ("data.validation=0.1", "train.epochs=2", "train.lr=0.1", "train.schedule=constant", "model.widths=[16]")
    _, validated = run_sequentially(load_config(None, fields), "run", tmp_path / "validated", quiet=True)
    summary = read_summary(validated)
    result = measured(validated)
    assert scores(result) == summary["exits"] and result["step"] * 2 == summary["steps"] * summary["tested_epoch"]
    assert measured(validated, "--step", "best") == result
    assert measured(validated, "--step", "last")["step"] == summary["steps"]


def test_the_metrics_of_the_run_are_measured_too_but_for_code_of_ones_own(tmp_path):
    fields = ("train.metrics=[macro_f1,own_metrics:brier,log_loss]", "train.epochs=1", "model.widths=[16,16]")
    _, run = run_sequentially(load_config(None, fields), "run", tmp_path / "run", quiet=True)
    expected, result = read_summary(run)["metrics"], measured(run)
    for name in ("macro_f1", "log_loss"):
        assert [each[name] for each in result["exits"]] == expected[name]
    assert result["not_measured"] == ["own_metrics:brier"]
    shown = ask(run)
    assert f"{expected['macro_f1'][-1]:.4f}" in shown.stdout and "code of your own: own_metrics:brier" in shown.stdout


def test_other_texts_are_read_with_the_runs_vocabulary_and_classes(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, vectors = small_data.write_texts(tmp_path / "texts.jsonl"), tmp_path / "vectors.txt"
    vectors.write_text("lovely " + "0.5 " * 7 + "0.5\n")
    fields = [f"data.file={file}", f"data.word_vectors={vectors}", *TEXTS]
    _, run = run_sequentially(load_config(None, fields), "run", tmp_path / "run", quiet=True)
    vectors.unlink()  # which only a training reads
    assert scores(measured(run)) == read_summary(run)["exits"]
    other = tmp_path / "other.csv"
    told = [("lovely bright", "good"), ("dark awful", "bad"), ("zebra zebra zebra", "good")]
    with other.open("w", newline="") as opened:
        csv.writer(opened).writerows([("review", "verdict"), *told])
    columns = ("--set", "data.text_column=review", "--set", "data.label_column=verdict")
    file.unlink()
    result = measured(run, "--set", f"data.test_file={other}", *columns)
    for exit, accuracy in enumerate(scores(result), 1):
        answered = alrpc.load_run(run).answers((text for text, _ in told), exit=exit)
        assert accuracy == sum(answer.label == label for answer, (_, label) in zip(answered, told, strict=True)) / 3
    other.write_text("review,verdict\nfine,middling\n")
    refused = ask(run, "--set", f"data.test_file={other}", *columns)
    assert refused.exit_code == 1 and f"{other}:2: label 'middling' is not one of the run's; use one" in refused.stderr
    refused = ask(run, "--set", "data.name=digits")
    assert refused.stderr == "alrpc: data.name: got digits, whose inputs or classes are not those of the run\n"
    refused = ask(run, "--set", "data.max_tokens=3")
    assert refused.exit_code == 2 and "--set: got 'data.max_tokens=3'; of a run that is evaluated only" in refused.stderr


def test_other_images_need_no_training_images_and_may_lack_classes(tmp_path):
    root = small_data.write_images(tmp_path / "data")
    _, run = run_sequentially(load_config(None, [f"data.root={root}", *IMAGES]), "run", tmp_path / "run", quiet=True)
    shutil.rmtree(root / "train")
    assert scores(measured(run)) == read_summary(run)["exits"]
    shutil.rmtree(root / "test" / "bottom")
    moved = shutil.move(root, tmp_path / "moved")
    result = measured(run, "--set", f"data.root={moved}")
    answered = list(alrpc.load_run(run).answers(sorted((moved / "test").rglob("*.png"))))
    assert scores(result)[-1] == sum(answer.label == "top" for answer in answered) / 8  # still the second class
    (moved / "test" / "top").rename(moved / "test" / "cat")
    refused = ask(run, "--set", f"data.root={moved}")
    assert refused.exit_code == 1 and "class cat is not one of the run's" in refused.stderr


def test_ones_own_data_are_imported_only_when_named(tmp_path):
    fields = ("data.name=own_blocks:regression", "train.epochs=1", "model.widths=[16]")
    _, run = run_sequentially(load_config(None, fields), "run", tmp_path / "run", quiet=True)
    refused = ask(run)
    assert refused.exit_code == 2 and refused.stderr.endswith("or --data own_blocks:regression, to import it\n")
    result = measured(run, "--data", "own_blocks:regression")
    assert [each["mse"] for each in result["exits"]] == read_summary(run)["exits"]
    assert "mse" in ask(run, "--data", "own_blocks:regression").stdout
