"""Weights of classes: what the samples of a class count in cross entropies, in every objective that has one and in the baselines."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.checkpoint.manifest import describe_run
from alrpc.config import load_config, parse_section
from alrpc.data import for_run
from alrpc.data.loader import EpochSize
from alrpc.experiments.baselines.objective import loss
from alrpc.objectives import OBJECTIVES

torch.manual_seed(0)
SCORES, LABELS = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
WEIGHTS = (0.5, 1.0, 4.0)


def small() -> alrpc.Dataset:
    split = alrpc.Split(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), LABELS)
    return alrpc.Dataset(split, split, alrpc.Classes(3), classes=["a", "b", "c"])


def learned(objective: str = "classifier", target: alrpc.Classes | None = None, options=(), **fields) -> str:
    dataset = small()
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 4)]
    network = alrpc.decouple(blocks, dataset.sample, target or dataset.target, objective, **dict(options))
    alrpc.train(network, dataset, epochs=1, batch_size=4, **fields)
    return network.digest()


def test_the_loss_is_the_mean_of_the_weighted_cross_entropies_of_the_samples():
    each = functional.cross_entropy(SCORES, LABELS, reduction="none")
    expected = (torch.tensor(WEIGHTS)[LABELS] * each).mean()
    target = alrpc.Classes(3, WEIGHTS)
    assert torch.allclose(target.cross_entropy(SCORES, LABELS), expected)
    assert torch.allclose(loss(target, SCORES, LABELS, len(LABELS)), expected)
    assert torch.equal(alrpc.Classes(3).cross_entropy(SCORES, LABELS), functional.cross_entropy(SCORES, LABELS))


def test_balanced_weights_let_each_class_count_alike():
    target = for_run(small(), parse_section("data", {}), parse_section("train", {"class_weights": "balanced"})).target
    assert target.weights == pytest.approx([6 / 12, 6 / 3, 6 / 3]) and sum(target.weights[label] for label in LABELS) == 6
    assert target == alrpc.Classes(3)  # a run resumes, and predicts, without them
    assert describe_run(1, small().sample, target, EpochSize(1, 1, 1), 0, {})["target"] == {"classes": {"count": 3}}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_a_cross_entropy_heeds_them(objective):
    options = {"autoencoder_loss": "cross_entropy"} if objective == "associated" else {}
    plain = learned(objective, options=options)
    weighted = learned(objective, options=options, class_weights=list(WEIGHTS))
    assert weighted == learned(objective, options=options, class_weights=list(WEIGHTS)) != plain
    assert plain == learned(objective, alrpc.Classes(3, WEIGHTS), options)  # the data set's target counts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "train.class_weights: got 2 weights, but there are 3 classes; give one for each"),
        ({"objective": "associated", "class_weights": "balanced"}, "train.class_weights: weigh a cross entropy"),
        ({"class_weights": "even"}, "train.class_weights: got 'even'; it should be the weights of the classes, or balanced"),
        ({"class_weights": [0.0, 1.0, 1.0]}, "it should be the weights of the classes, or balanced, or null"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(alrpc.UserError) as error:
        learned(**given)
    assert message in str(error.value)


def test_a_class_without_samples_and_values_are_refused():
    split = alrpc.Split(torch.zeros(2, 5), torch.tensor([0, 2]))
    fields = parse_section("data", {}), parse_section("train", {"class_weights": "balanced"})
    for target, message in ((alrpc.Classes(3), "class 1 has no sample to train on"), (alrpc.Values(1), "the target is Values")):
        with pytest.raises(alrpc.UserError, match=message):
            for_run(alrpc.Dataset(split, split, target), *fields)
    with pytest.raises(alrpc.UserError, match="weights: got"):
        alrpc.Classes(3, (1.0, float("nan"), 2.0))
    assert load_config(None, ["train.class_weights=[1, 2]"]).train.class_weights == [1.0, 2.0]
