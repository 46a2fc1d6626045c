"""Supervised contrastive learning: its loss is the formula's, finite where a class is alone, and computed in float32."""

import math

import pytest
import torch
from torch import nn

import alrpc
from alrpc.objectives.base import Microbatch
from alrpc.objectives.contrastive import contrastive_loss


def by_loops(vectors: list[list[float]], labels: list[int], temperature: float, tau_plus: float) -> float:
    """The loss, sample by sample."""
    lengths = [math.sqrt(sum(value * value for value in vector)) for vector in vectors]
    total = 0.0
    for i, mine in enumerate(vectors):
        terms = [
            math.exp(sum(a * b for a, b in zip(mine, other, strict=True)) / lengths[i] / lengths[k] / temperature)
            for k, other in enumerate(vectors)
        ]
        positives = [k for k in range(len(vectors)) if k != i and labels[k] == labels[i]]
        negatives = [k for k in range(len(vectors)) if labels[k] != labels[i]]
        repelled = sum(terms[k] for k in negatives)
        if tau_plus and positives:
            mean = sum(terms[k] for k in positives) / len(positives)
            corrected = (repelled - tau_plus * len(negatives) * mean) / (1 - tau_plus)
            repelled = max(corrected, len(negatives) * math.exp(-1 / temperature))
        below = sum(terms[k] for k in positives) + repelled
        total -= sum(math.log(terms[k] / below) for k in positives) / (len(positives) + 1)
    return total / len(vectors)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
def test_the_loss_is_the_formula_s(labels, tau_plus):
    torch.manual_seed(0)
    vectors = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(vectors, torch.tensor(labels), 0.5, tau_plus)
    assert loss.item() == pytest.approx(by_loops(vectors.tolist(), labels, 0.5, tau_plus), rel=1e-12, abs=1e-12)
    loss.backward()
    assert vectors.grad.isfinite().all()


def test_a_class_of_one_sample_contributes_nothing_but_as_a_negative():
    torch.manual_seed(0)
    vectors, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 0, 1])
    loss = contrastive_loss(vectors, labels, 0.1)
    assert loss.item() == pytest.approx(by_loops(vectors.tolist(), [0, 0, 1], 0.1, 0.0), rel=1e-12)
    assert loss != contrastive_loss(vectors[:2], labels[:2], 0.1)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
@pytest.mark.parametrize("vectors", [torch.randn(1, 4), torch.zeros(3, 4), 1e3 * torch.eye(4)], ids=["one", "zeros", "large"])
def test_loss_and_gradient_are_finite_at_a_low_temperature(vectors, tau_plus):
    vectors = vectors.clone().requires_grad_()
    loss = contrastive_loss(vectors, torch.tensor([0, 1, 0, 1])[: len(vectors)], 0.01, tau_plus)
    loss.backward()
    assert loss.isfinite() and vectors.grad.isfinite().all()


def test_the_similarities_are_float32_under_bf16():
    torch.manual_seed(0)
    network = alrpc.decouple([nn.LayerNorm(64)], torch.zeros(2, 64), alrpc.Classes(2), "contrastive", projector_widths=[])
    labels = torch.arange(8) % 2
    with torch.autocast("cpu", torch.bfloat16):
        batch, losses = network.components[0](Microbatch({"x": torch.randn(8, 64)}, {"label": labels}))
    assert losses[0] == contrastive_loss(batch.tensors["x"], labels, 0.1)


def test_the_predictor_changes_nothing_that_the_block_learns():
    torch.manual_seed(0)
    network = alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(2), "contrastive", head="mlp")
    component = network.components[0]
    batch = Microbatch({"x": torch.randn(6, 4)}, {"label": torch.arange(6) % 2})
    _, (contrastive, predictor) = component(batch)
    predictor.backward()
    learned = {name.partition(".")[0] for name, parameter in component.named_parameters() if parameter.grad is not None}
    assert learned == {"predictor"}
    contrastive.backward()
    assert all(parameter.grad is not None for parameter in component.parameters())


def test_texts_are_compared_by_their_pooled_vectors_which_the_mask_decides():
    torch.manual_seed(0)
    sample = {"x": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5, dtype=torch.bool)}
    blocks = [nn.Embedding(9, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)]
    network = alrpc.decouple(blocks, sample, alrpc.Classes(2), "contrastive", projector_widths=[])
    projector = network.components[0].projector
    x, mask = torch.randn(3, 5, 6), torch.arange(5) < 3
    torch.testing.assert_close(projector(x, mask.expand(3, 5)), x[:, :3].mean(dim=1))


def test_an_image_s_projector_is_pooled_or_flattened():
    def first_layer(pooling: str) -> int:
        options = {"pooling": pooling, "projector_widths": [16, 8]}
        network = alrpc.decouple([nn.Conv2d(1, 3, 3)], torch.zeros(2, 1, 10, 10), alrpc.Classes(2), "contrastive", **options)
        return network.components[0].projector[1].in_features

    assert first_layer("auto") == 3 and first_layer("flatten") == 3 * 8 * 8


def test_a_pool_with_parameters_is_one_for_the_projector_and_one_for_the_predictor():
    pool = nn.Linear(4, 3)
    network = alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(2), "contrastive", pools=[pool])
    component = network.components[0]
    assert component.predictor[0] is pool and component.projector[0] is not pool
    assert torch.equal(component.projector[0].weight, pool.weight)
