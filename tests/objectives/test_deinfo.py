"""DeInfoReg: its terms are the formulas', weighted, finite for a single sample, and computed in float32."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.objectives import deinfo
from alrpc.objectives.base import Microbatch
from alrpc.objectives.terms import similarity_loss

LABELS = [0, 2, 0, 1, 2, 0]


def unit_vectors(count: int = 6, width: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return functional.normalize(torch.randn(count, width, dtype=torch.float64)).requires_grad_()


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_invariance_compares_correlations_of_samples_with_those_of_their_one_hot_labels():
    network = alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(3), "deinfo", projector_widths=[])
    component = network.double().components[0]
    x = torch.randn(6, 4, dtype=torch.float64)
    _, losses = component(Microbatch({"x": x}, {"label": torch.tensor(LABELS)}))
    rows = component.block(x).tolist()
    one_hot = [[float(label == c) for c in range(3)] for label in LABELS]
    squares = [(correlation(rows[i], rows[j]) - correlation(one_hot[i], one_hot[j])) ** 2 for i in range(6) for j in range(6)]
    assert losses[0].item() == pytest.approx(sum(squares) / 36, rel=1e-5)


@pytest.mark.parametrize("width", [4, 9])
def test_covariance_and_variance_are_the_formulas(width):
    rows, numbers = unit_vectors(6, width).tolist(), range(width)
    means = [sum(row[d] for row in rows) / 6 for d in numbers]

    def between(d: int, e: int) -> float:
        return sum((row[d] - means[d]) * (row[e] - means[e]) for row in rows) / 6

    squares = sum(between(d, e) ** 2 for d in numbers for e in numbers if d != e)
    assert deinfo.covariance(unit_vectors(6, width)).item() == pytest.approx(squares / width, rel=1e-12)
    lacking = sum(max(0.0, 1 - math.sqrt(between(d, d) + 1e-7)) for d in numbers)
    assert deinfo.variance(unit_vectors(6, width)).item() == pytest.approx(lacking / width / 6, rel=1e-12)
    assert deinfo.variance(5 * unit_vectors(6, width)).item() < lacking / width / 6


@pytest.mark.parametrize(
    "vectors", [unit_vectors(1), torch.ones(3, 4), torch.zeros(3, 4)], ids=["one sample", "equal numbers", "zeros"]
)
def test_losses_and_gradients_are_finite_where_nothing_varies(vectors):
    vectors = vectors.detach().clone().requires_grad_()
    labels = torch.tensor([0, 1, 0])[: len(vectors)]
    terms = (
        similarity_loss(vectors, functional.one_hot(labels, 2).float()),
        deinfo.covariance(vectors),
        deinfo.variance(vectors),
    )
    sum(terms).backward()
    assert all(term.isfinite() for term in terms) and vectors.grad.isfinite().all()


def losses_of(precision: torch.dtype | None = None, **options) -> tuple[alrpc.Component, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    options = {"projector_widths": [8, 8], **options}
    network = alrpc.decouple([nn.LayerNorm(16)], torch.zeros(2, 16), alrpc.Classes(3), "deinfo", **options)
    batch = Microbatch({"x": torch.randn(6, 16)}, {"label": torch.tensor(LABELS)})
    with torch.autocast("cpu", precision, enabled=precision is not None):
        return network.components[0], network.components[0](batch)[1]


def test_every_term_is_multiplied_by_its_weight():
    _, plain = losses_of(classifier=1.0)
    _, weighted = losses_of(invariance=2.0, covariance=3.0, variance=0.5, classifier=0.25)
    for loss, of_one, weight in zip(weighted, plain, (2.0, 3.0, 0.5, 0.25), strict=True):
        torch.testing.assert_close(loss, weight * of_one)


@pytest.mark.parametrize("detach", [False, True])
def test_the_classifier_trains_the_projection_unless_it_is_detached(detach):
    component, losses = losses_of(detach=detach)
    losses[-1].backward()
    learned = {name.partition(".")[0] for name, parameter in component.named_parameters() if parameter.grad is not None}
    assert learned == ({"classifier"} if detach else {"block", "projector", "classifier"})


def test_the_terms_are_float32_under_bf16():
    _, in_bf16 = losses_of(torch.bfloat16, projector_widths=[])
    _, in_fp32 = losses_of(projector_widths=[])
    assert in_bf16[:3] == in_fp32[:3] and in_bf16[3] != in_fp32[3]


def test_the_exit_is_the_classifier_of_the_projection():
    component, _ = losses_of()
    component.eval()
    x = torch.randn(5, 16)
    _, exit = component.evaluate({"x": x})
    torch.testing.assert_close(exit, component.classifier(component.projector(component.block(x))))
