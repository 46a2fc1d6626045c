"""`alrpc compare`: every method on a module of one's own, what it leaves, and what it refuses."""

import json
import signal

import pytest
from conftest import ALRPC, LIMIT, read_summary
from small_data import write_texts

from alrpc.cli.compare import parse_objectives
from alrpc.config import load_config
from alrpc.experiments.comparison import with_objective

METHODS = ["al", "al-sequential", "bp", "layer-placed", "gpipe", "1f1b", "ddp"]
OWN = """
import torch
from torch import nn

def build(width: int = 32):
    return [
        nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU()),
        nn.Sequential(nn.LazyLinear(width), nn.ReLU()),
        nn.Sequential(nn.LazyLinear(width), nn.ReLU()),
    ]
"""


def test_a_module_of_ones_own_trains_by_every_method(commands):
    (commands.folder / "mine.py").write_text(OWN)
    (commands.folder / "mine.yaml").write_text(
        "model: {name: 'mine:build', width: 24}\ntrain: {epochs: 4, lr: 5.0e-3, accumulate: 2, clip_norm: 1.0}\n"
    )
    done = commands.alrpc("compare", "--config", "mine.yaml", "--stages", "2", "--repeat", "1", "--out", "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((commands.folder / "out" / "comparison.json").read_text())
    assert [row["method"] for row in result["table"]] == METHODS and result["failures"] == []
    runs = {run["method"]: run for run in result["runs"]}
    assert all(run["best"] > 0.2 and run["samples_per_second"] > 0 and 0 <= run["idle"] < 1 for run in runs.values())
    assert [len(run["curve"]) for run in runs.values()] == [4] * 7
    # The same network, data, order and arithmetic but for how sums are cut: back-propagation learns the same everywhere.
    for method in ("layer-placed", "gpipe", "1f1b", "ddp"):
        assert runs[method]["final"] == pytest.approx(runs["bp"]["final"], abs=0.02)
        assert runs[method]["parameters"] == runs["bp"]["parameters"]
    assert runs["al"]["final"] == pytest.approx(runs["al-sequential"]["final"], abs=0.02)
    for row in result["table"]:
        assert f"{row['best_mean']:.4f}" in done.stdout and row["seconds_to_goal"] is not None
    for picture in ("accuracy.png", "throughput.png"):
        assert (commands.folder / "out" / picture).read_bytes().startswith(b"\x89PNG")


def test_pipedream_is_trained_evaluated_and_shown_like_the_others(commands):
    fields = ["train.epochs=4", "train.accumulate=2", "train.lr=1e-2", "data.validation=0.1", "model.widths=[32,32,32]"]
    options = [part for field in fields for part in ("--set", field)]
    methods = ("--methods", "bp,pipedream,pipedream-2bw", "--stages", "2", "--repeat", "1")
    done = commands.alrpc("compare", *methods, "--out", "out", "--json", *options)
    assert done.returncode == 0, done.stderr
    runs = {run["method"]: run for run in json.loads(done.stdout)["runs"]}
    assert list(runs) == ["bp", "pipedream", "pipedream-2bw"]
    for run in runs.values():
        assert run["final"] > 0.4 and run["parameters"] == runs["bp"]["parameters"]
        assert run["samples_per_second"] > 0 and 0 <= run["idle"] < 1 and len(run["curve"]) == 4
    summary = read_summary(commands.folder / "out" / runs["pipedream"]["directory"])
    assert summary["exits"] == [runs["pipedream"]["final"]] and summary["validation_accuracy"] == runs["pipedream"]["best"]


@pytest.mark.parametrize("method", ["pipedream", "gpipe"])
def test_a_process_that_is_killed_is_named_and_not_the_one_that_misses_it(commands, until, method):
    options = ("--set", "train.epochs=100000", "--stages", "2", "--repeat", "1", "--out", "out")
    process = commands.start(ALRPC, "compare", "--config", "digits-mlp", "--methods", method, *options)
    until(lambda: any('"evaluation"' in path.read_text() for path in commands.folder.rglob("metrics.jsonl")))
    commands.workers()[1].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert f"round 1/1 {method}: process 2 " in errors.splitlines()[-1] and "was killed by SIGKILL" in errors.splitlines()[-1]


def test_objectives_stand_side_by_side_with_options_of_their_own(commands):
    objectives = "associated,classifier,classifier head=mlp width=8"
    options = ("--methods", "al-sequential,bp", "--repeat", "1", "--set", "model.widths=[16,16]", "--set", "train.epochs=2")
    done = commands.alrpc("compare", "--objectives", objectives, *options, "--out", "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((commands.folder / "out" / "comparison.json").read_text())
    labels = ["associated sequential", "classifier sequential", "classifier head=mlp width=8 sequential", "bp"]
    assert [row["method"] for row in result["table"]] == labels
    assert [row["objective"] for row in result["table"]] == ["associated", "classifier", "classifier", None]
    of_blocks = 64 * 16 + 16 + 16 * 16 + 16
    parameters = [sum(row["parameters"].values()) for row in result["table"]]
    assert parameters[1] == of_blocks + 2 * (16 * 10 + 10)
    assert parameters[2] == of_blocks + 2 * (16 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10)
    assert f"{parameters[2]:,}" in done.stdout


def test_an_option_of_an_objective_may_be_a_list():
    told = parse_objectives("deinfo projector_widths=[64,32], classifier  head=mlp")
    assert told == ["deinfo projector_widths=[64,32]", "classifier head=mlp"]
    assert with_objective(load_config(), told[0]).objective.projector_widths == [64, 32]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("classifer", "objective.name: got 'classifer'; it should be"),
        ("classifier haed=mlp", "objective.haed: unknown field; did you mean objective.head?"),
        ("classifier mlp", "--objectives: got 'mlp' after classifier; write field=value"),
        ("classifier,classifier", "--objectives: got 'classifier,classifier'; give each once"),
    ],
)
def test_wrong_objectives_are_refused_and_nothing_is_written(commands, objectives, message):
    refused = commands.alrpc("compare", "--objectives", objectives, "--methods", "al-sequential")
    assert refused.returncode == 2 and refused.stderr.startswith(f"alrpc: {message}"), refused.stderr
    assert list(commands.folder.iterdir()) == []


def test_pipelines_take_texts_of_varying_length_with_mask_and_state_in_bfloat16(commands):
    write_texts(commands.folder / "texts.jsonl")
    fields = ["model.name=lstm", "model.width=16", "model.hidden=8", "data.name=text-file", "data.file=texts.jsonl"]
    fields += ["data.batch_size=16", "train.epochs=3", "train.lr=1e-2", "precision=bf16"]
    options = [part for field in fields for part in ("--set", field)]
    done = commands.alrpc(
        *("compare", "--methods", "bp,1f1b,ddp", "--stages", "3", "--repeat", "1", "--out", "out", "--json", *options),
        XDG_CACHE_HOME=str(commands.folder / "cache"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # and nothing else
    assert result == json.loads((commands.folder / "out" / "comparison.json").read_text()) and "round 1/1 bp: " in done.stderr
    runs = result["runs"]
    assert [run["method"] for run in runs] == ["bp", "1f1b", "ddp"] and all(run["best"] > 0.7 for run in runs)


def test_a_baseline_with_a_validation_split_ends_early_and_is_tested_by_its_best_epoch(commands):
    fields = ["data.validation=0.1", "train.epochs=40", "train.patience=1", "train.lr=0.02", "train.schedule=constant"]
    options = [part for field in fields for part in ("--set", field)]
    done = commands.alrpc("compare", "--methods", "bp", "--repeat", "1", "--out", "out", "--json", *options)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    scores = [score for _, _, score in run["curve"]]
    assert (run["split"], run["validation_samples"], run["test_samples"]) == ("validation", 142, 360)
    assert run["best"] == max(scores) == scores[-2] and scores[-1] <= scores[-2] and len(scores) < 40
    summary = read_summary(commands.folder / "out" / run["directory"])
    assert (
        summary["tested_epoch"] == len(scores) - 1 and summary["ended_early"] and summary["validation_accuracy"] == run["best"]
    )
    assert summary["exits"] == [run["final"]] and run["final"] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "al,sgd"], "--methods: got 'sgd'; give some of al,"),
        (["--methods", "bp,bp"], "--methods: got 'bp,bp'"),
        (["--methods", "bp,pipedream", "--set", "train.clip_norm=1"], "train.clip_norm: got 1, but pipedream never has"),
        (["--methods", "pipedream-2bw", "--stages", "2"], "train.accumulate: got 1, but pipedream-2bw updates every 2"),
        (["--stages", "9"], "pipeline.stages: got 9, but the model has 4 components"),
        (
            ["--methods", "bp", "--set", "data.name=mnist", "--set", "data.root=nowhere"],
            "data.root: nowhere is not a directory",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(commands, options, message):
    refused = commands.alrpc("compare", *options)
    assert refused.returncode == 2 and refused.stderr.startswith(f"alrpc: {message}") and refused.stderr.count("\n") == 1
    assert list(commands.folder.iterdir()) == []
