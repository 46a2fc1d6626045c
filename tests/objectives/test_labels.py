"""Several labels a sample: their loss in every objective that learns them and in the baselines, their score, and what a run says."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.checkpoint.manifest import describe_run, target_of
from alrpc.data.loader import EpochSize
from alrpc.experiments.baselines.objective import fill_up_labels, loss

torch.manual_seed(0)
TARGET, SCORES, LABELS = alrpc.Labels(3), torch.randn(6, 3), torch.randint(0, 2, (6, 3), dtype=torch.uint8)


def test_the_loss_is_the_binary_cross_entropy_averaged_over_labels_and_samples():
    expected = functional.binary_cross_entropy(SCORES.sigmoid(), LABELS.float())
    assert torch.allclose(TARGET.loss(SCORES, LABELS), expected)
    smooth = functional.binary_cross_entropy(SCORES.sigmoid(), LABELS * 0.8 + 0.1)
    assert torch.allclose(TARGET.cross_entropy(SCORES, LABELS, label_smoothing=0.2), smooth)
    assert torch.allclose(loss(TARGET, SCORES, LABELS, 6), expected)  # of back-propagation


def test_padding_of_the_baselines_does_not_count():
    scores = SCORES.clone().requires_grad_()
    labels = fill_up_labels(TARGET, LABELS[:4], 6)
    found = loss(TARGET, scores, labels, 4)
    assert torch.allclose(found, TARGET.loss(SCORES[:4], LABELS[:4]))
    found.backward()
    assert scores.grad[:4].all() and not scores.grad[4:].any()


def test_the_score_is_the_share_of_labels_that_are_right():
    right = torch.where(LABELS > 0, 2.0, -2.0)
    assert TARGET.score(right, LABELS) == 6 and TARGET.score(-right, LABELS) == 0
    assert TARGET.score(right * torch.tensor([1, 1, -1]), LABELS.bool()) == pytest.approx(6 * 2 / 3)
    assert TARGET.score(right * torch.nan, LABELS) == 0  # although none of them is above a half
    assert TARGET.decide(right).tolist() == LABELS.bool().tolist()


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("associated", {"target_width": 16, "bridge_widths": [16]}),
        ("associated", {"target_width": 16, "bridge_widths": [16], "autoencoder_loss": "cross_entropy"}),
        ("classifier", {"head": "linear"}),
        ("classifier", {"head": "mlp", "similarity": 0.5, "label_smoothing": 0.1}),
        ("classifier", {"ensemble": True}),
        ("synthetic", {"label": True}),
        ("target_propagation", {}),
    ],
)
def test_every_objective_of_labels_learns_them(objective, options):
    torch.manual_seed(0)
    inputs = torch.randn(400, 6)
    split = alrpc.Split(inputs, inputs[:, :3] + inputs[:, 3:] > 0)
    dataset = alrpc.Dataset(split, split, TARGET)
    blocks = [nn.Sequential(nn.Linear(6, 24), nn.Tanh()), nn.Sequential(nn.Linear(24, 24), nn.Tanh())]
    network = alrpc.decouple(blocks, dataset.sample, TARGET, objective, **options)
    exits = alrpc.train(network, dataset, epochs=12, lr=1e-2, batch_size=20)
    assert exits[-1] > 0.85
    shares = network.objective.probabilities(network(inputs))
    assert shares.min() >= 0 and shares.max() <= 1 and shares.sum(dim=1).max() > 1.5
    assert (network.predict(inputs) == split.labels).float().mean().item() == pytest.approx(exits[-1])


def test_a_convolutional_head_scores_labels():
    network = alrpc.decouple([nn.Conv2d(1, 4, 3)], torch.zeros(2, 1, 8, 8), TARGET, head="conv")
    assert network(torch.zeros(5, 1, 8, 8)).shape == (5, 3)


def test_a_manifest_has_them_and_classes_do_not_weigh():
    described = describe_run(1, {"x": torch.zeros(1, 2)}, TARGET, EpochSize(1, 1, 1), 0, {})
    assert described["target"] == {"labels": {"count": 3}} and target_of(described) == TARGET
    split = alrpc.Split(SCORES, LABELS)
    with pytest.raises(alrpc.UserError, match=r"train.class_weights: got \[1.0, 2.0, 3.0\], but the target is Labels"):
        dataset = alrpc.Dataset(split, split, TARGET)
        alrpc.train(alrpc.decouple([nn.Linear(3, 3)], SCORES, TARGET), dataset, class_weights=[1.0, 2.0, 3.0])


def test_a_run_of_labels_does_not_go_on_with_values_or_classes(tmp_path):
    inputs = torch.randn(20, 4)
    given = {alrpc.Labels(3): inputs[:, :3] > 0, alrpc.Values(3): inputs[:, :3], alrpc.Classes(3): torch.arange(20) % 3}
    for number, (target, labels) in enumerate(given.items()):
        split = alrpc.Split(inputs, labels)
        network = alrpc.associate([nn.Linear(4, 4)], inputs[:1], target, target_width=4)
        dataset = alrpc.Dataset(split, split, target, classes=["a", "b", "c"] if target.named else None)
        if not number:
            alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
            alrpc.train(network, dataset, epochs=2, resume=tmp_path / "run")
            continue
        message = rf"data: {re.escape(str(target))} as target, but the run began with Labels\(count=3\); give it the data"
        with pytest.raises(alrpc.UserError, match=message):
            alrpc.train(network, dataset, epochs=3, resume=tmp_path / "run")
