"""`alrpc inspect`: the distances by hand, and what it makes of real runs."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from conftest import read_summary
from own_sequences import load

import alrpc
from alrpc.analysis.quality import LARGEST, choose_samples, distances, measure, normalise, project, shrink, vectors
from alrpc.cli.inspect import inspect
from alrpc.config import Config
from alrpc.runtime.run import run_sequentially


def test_distances_of_clusters_by_hand():
    points = torch.tensor([[0.0, 0], [2, 0], [0, 4], [2, 4], [9, 9]])
    labels = torch.tensor([1, 1, 5, 5, 7])
    # Means (1, 0) and (1, 4), each sample 1 from its own; one sample of class 7 says nothing of how a class spreads.
    assert distances(points, labels) == {"intra": 1.0, "inter": 4.0, "ratio": 4.0}
    assert distances(points[:2], labels[:2]) == {"intra": 1.0, "inter": None, "ratio": None}
    assert distances(points[:1], labels[:1]) == {"intra": None, "inter": None, "ratio": None}
    together = points[[0, 0, 2, 2]]
    assert distances(together, labels[:4]) == {"intra": 0.0, "inter": 4.0, "ratio": None}


def test_normalised_layers_compare_whatever_their_scale_and_width():
    points = torch.tensor([[0.0, 0], [2, 0], [0, 4], [2, 4]])
    labels = torch.tensor([0, 0, 1, 1])
    # Each point is (±1, ±2) from the mean: a mean squared length of 5.
    found = distances(normalise(points), labels)
    assert found == pytest.approx({"intra": 1 / math.sqrt(5), "inter": 4 / math.sqrt(5), "ratio": 4.0})
    assert distances(normalise(points.repeat(1, 30) * 7 + 3), labels) == pytest.approx(found)
    assert not normalise(torch.full((3, 2), 0.5)).any()


def test_a_sequence_is_averaged_over_what_its_mask_leaves():
    dataset = load()
    network = alrpc.associate([torch.nn.Embedding(19, 4)], dataset.sample, dataset.target)
    tensors, _ = dataset.test.batch(torch.tensor([0, 1]))
    left = network.components[0].activate(tensors)
    means = torch.stack([row[mask].mean(dim=0) for row, mask in zip(left["x"], left["mask"], strict=True)])
    assert torch.allclose(vectors(network.components[0], left), means)


def test_large_feature_maps_are_shrunk_and_keep_their_distances():
    maps = torch.randn(40, 9216, generator=torch.Generator().manual_seed(0))
    maps[20:] += 0.5
    labels = torch.arange(40) // 20
    assert shrink(maps).shape == (40, LARGEST)
    shrunk, exact = (distances(normalise(activations), labels) for activations in (shrink(maps), maps))
    assert shrunk == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (5, 1), (12, 3)])
def test_a_projection_has_two_finite_coordinates_for_each_sample_always_the_same(method, shape):
    activations = normalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    first, second = (project(activations, method)[0] for _ in range(2))
    assert first.shape == (shape[0], 2) and first.isfinite().all() and torch.equal(first, second)
    assert not project(torch.zeros(5, 3), method)[0].any()


def test_samples_are_spread_over_a_split_that_is_sorted_by_class():
    chosen = choose_samples(1000, 100)
    assert len(chosen.unique()) == 100 and (chosen.diff() > 0).all()
    assert all(((chosen >= start) & (chosen < start + 200)).sum() >= 5 for start in range(0, 1000, 200))
    assert torch.equal(choose_samples(7, 1000), torch.arange(7))


def test_activations_that_are_not_finite_are_refused_by_component():
    dataset = alrpc.load_data("digits")
    blocks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)), torch.nn.Linear(8, 8)]
    network = alrpc.associate(blocks, dataset.sample, dataset.target)
    torch.nn.init.constant_(blocks[1].bias, float("inf"))
    with pytest.raises(alrpc.UserError, match="component 2: its activations on the test samples are not all finite"):
        measure(network, dataset, torch.arange(20), Config())


def test_a_run_is_inspected_and_what_cannot_be_is_refused_in_one_line(commands, monkeypatch):
    monkeypatch.chdir(commands.folder)
    trained = commands.alrpc("train", "--set", "train.epochs=4", "--out", "run")
    assert trained.returncode == 0, trained.stderr
    run = commands.folder / "run"
    shown = commands.alrpc("inspect", "run")
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    result = json.loads((run / "quality.json").read_text())
    accuracies = [component["accuracy"] for component in result["components"]]
    assert accuracies == read_summary(run)["exits"] and accuracies[-1] == read_summary(run)["test_accuracy"]
    assert all(f"{accuracy:.4f}" in shown.stdout for accuracy in accuracies)
    confusion = torch.tensor(result["confusion"])
    assert confusion.sum() == result["samples"] == result["test_samples"] == 360
    assert confusion.diag().sum() / 360 == pytest.approx(accuracies[-1])
    assert confusion.sum(dim=1).tolist() == torch.tensor(result["labels"]).bincount().tolist()
    ratios = [component["ratio"] for component in result["components"]]
    assert ratios[-1] > 1.5 * ratios[0] > 1  # each block takes the classes further apart
    for component in result["components"]:
        assert component["ratio"] == pytest.approx(component["inter"] / component["intra"])
        assert len(component["coordinates"]) == 360 and 0 < component["explained"] < 1
    assert (run / "quality.png").read_bytes().startswith(b"\x89PNG") and list(run.glob("*.partial")) == []

    before = (run / "quality.json").read_bytes()
    (commands.folder / "bare").mkdir()
    (commands.folder / "bare" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    for arguments, code, message in [
        (["absent"], 2, "absent is not the directory of a run: it has no config.yaml"),
        (["bare"], 1, "bare: no complete checkpoint in it"),
        (["run", "--set", "train.seed=1"], 2, "--set: got 'train.seed=1'; of a run that is inspected only data.root,"),
        (["run", "--set", "data.root=absent"], 2, "data.root: absent is not a directory"),
    ]:
        refused = CliRunner().invoke(inspect, arguments)
        assert refused.exit_code == code and refused.stdout == ""
        assert refused.stderr.startswith(f"alrpc: {message}") and refused.stderr.count("\n") == 1
    assert (run / "quality.json").read_bytes() == before


def test_a_regression_by_ones_own_code_has_the_error_of_its_exits_alone(tmp_path):
    run = tmp_path / "run"
    fields = ["model.name=own_blocks:build_for_regression", "data.name=own_blocks:regression", "train.epochs=2"]
    summary, _ = run_sequentially(alrpc.load_config(None, fields), "own", run, quiet=True)
    model = [str(run), "--model", "own_blocks:build_for_regression"]
    refused = CliRunner().invoke(inspect, model)
    assert refused.exit_code == 2 and refused.stderr.endswith("or --data own_blocks:regression, to import it\n")
    shown = CliRunner().invoke(inspect, [*model, "--data", "own_blocks:regression"])
    assert shown.exit_code == 0 and "need classes" in shown.stdout, shown.output
    result = json.loads((run / "quality.json").read_text())
    assert [component["mse"] for component in result["components"]] == summary["exits"]
    assert "confusion" not in result and (run / "quality.png").read_bytes().startswith(b"\x89PNG")
