"""The objective of docs/objectives.md has the promises of those that ship."""

import re
from pathlib import Path

import pytest
import torch
from conftest import read_summary
from torch import nn

import alrpc
from alrpc.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()


@pytest.fixture
def quadratic(commands):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code.count("\n") <= 31
    (commands.folder / "quadratic.py").write_text(code)
    command = re.search(r"^alrpc (launch .*quadratic:Quadratic.*)$", PAGE, re.MULTILINE)[1]
    return command.split()


def test_it_trains_to_the_same_bits_resumes_and_predicts(commands, quadratic, monkeypatch):
    more = ("--set", "train.epochs=3", "--set", "checkpoint.every=30", "--quiet")
    launched = commands.alrpc(*quadratic, *more, "--out", "pipeline")
    assert launched.returncode == 0, launched.stderr
    assert commands.alrpc("train", *quadratic[3:], *more, "--out", "one").returncode == 0
    one, pipeline = (read_summary(commands.folder / name) for name in ("one", "pipeline"))
    assert one["parameters_sha256"] == pipeline["parameters_sha256"] and one["test_accuracy"] > 0.5
    monkeypatch.syspath_prepend(commands.folder)
    with pytest.raises(UserError, match=r"its objective\.name is your own code; pass objective='quadratic:Quadratic'"):
        alrpc.load_run(commands.folder / "one")
    test = alrpc.load_data("digits").test
    answers = alrpc.load_run(commands.folder / "one", objective="quadratic:Quadratic").answers(test.inputs)
    right = sum(int(answer.label) == label for answer, label in zip(answers, test.labels.tolist(), strict=True))
    assert right / len(test) == one["test_accuracy"]
    assert '"quadratic_loss"' in (commands.folder / "pipeline" / "metrics.jsonl").read_text()

    resume = ("train", "--resume", "pipeline", "--set", "train.epochs=4", "--quiet")
    refused = commands.alrpc(*resume)
    assert refused.returncode == 2 and "--set objective.name=quadratic:Quadratic" in refused.stderr, refused.stderr
    resumed = commands.alrpc(*resume, "--set", "objective.name=quadratic:Quadratic")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [(3, "objective: got 3; give the name of an objective"), (lambda target: 7, "gave int; it must give an alrpc.Objective")],
)
def test_what_is_no_objective_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(2), given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("objective.wieght=2", "quadratic:Quadratic raised TypeError: "),
        ("objective.name=quadratic:Qudratic", "objective.name: quadratic:Qudratic: module 'quadratic' has no 'Qudratic'"),
    ],
)
def test_a_mistake_is_one_line(commands, quadratic, options, message):
    refused = commands.alrpc("train", *quadratic[3:5], "--set", options, "--quiet")
    assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert not (commands.folder / "runs").exists()
