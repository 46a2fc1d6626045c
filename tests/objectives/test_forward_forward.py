"""Forward-forward: what the rows are, the losses by their formulas, exits that know no label, inputs that are refused."""

import math

import pytest
import torch
from torch import nn

import alrpc
from alrpc.errors import UsageError
from alrpc.objectives.base import Component, Microbatch
from alrpc.objectives.forward_forward import Activity, goodness_loss, to_length

CLASSES = alrpc.Classes(3)


def build(*blocks: nn.Module, sample: torch.Tensor | None = None, **options) -> alrpc.Network:
    torch.manual_seed(0)
    sample = torch.zeros(2, 6) if sample is None else sample
    return alrpc.decouple(list(blocks), sample, CLASSES, "forward_forward", **options)


def entered(component: Component, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    beside = None if labels is None else {"label": labels}
    return component.objective.enter(component, {"x": x}, beside)["x"]


def scaled_like(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Rows that were scaled, with the scale taken back by means of their last number."""
    return rows * (x[:, -1:] / rows[:, -1:])


def test_component_1_writes_true_labels_then_wrong_ones_then_none():
    network = build(nn.Linear(6, 5))
    x, labels = torch.rand(64, 6) + 1, torch.arange(64) % 3
    rows = entered(network.components[0], x, labels)
    positive, negative, neutral = (scaled_like(part, x) for part in rows.chunk(3))
    for part in (positive, negative, neutral):
        torch.testing.assert_close(part[:, 3:], x[:, 3:])
    torch.testing.assert_close(positive[:, :3], torch.eye(3)[labels])
    wrong = negative[:, :3].argmax(dim=1)
    assert (wrong != labels).all() and {int(w - y) % 3 for w, y in zip(wrong, labels, strict=True)} == {1, 2}
    torch.testing.assert_close(negative[:, :3], torch.eye(3)[wrong])
    torch.testing.assert_close(neutral[:, :3], torch.full((64, 3), 1 / 3))
    torch.testing.assert_close(entered(network.components[0], x, None), rows[128:])
    torch.testing.assert_close(rows.square().mean(dim=1), torch.ones(192))


def test_wrong_labels_are_drawn_from_the_generator_that_a_step_seeds():
    component = build(nn.Linear(6, 5)).components[0]
    x, labels = torch.rand(64, 6), torch.arange(64) % 3
    first, again, other = (torch.manual_seed(seed) and entered(component, x, labels) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_later_blocks_run_on_activations_of_one_length_and_keep_other_tensors():
    network = build(nn.Linear(6, 5), nn.Linear(5, 4))
    x = torch.randn(9, 5)
    x[3] = 0
    rows = entered(network.components[1], x, torch.zeros(3, dtype=torch.int64))
    by_loops = [[value / max(math.sqrt(sum(v * v for v in row) / 5), 1e-8) for value in row] for row in x.double().tolist()]
    torch.testing.assert_close(rows, torch.tensor(by_loops))
    mask = torch.ones(2, 4, dtype=torch.bool)
    kept = network.objective.enter(
        network.components[0], {"x": torch.rand(2, 6), "mask": mask}, {"label": torch.tensor([0, 1])}
    )
    assert kept["mask"].shape == (6, 4) and kept["mask"].dtype == torch.bool


@pytest.mark.parametrize(("goodness", "threshold"), [("sum", None), ("mean", None), ("sum", 2.5), ("mean", 0.5)])
def test_the_goodness_loss_is_the_formula_s(goodness, threshold):
    torch.manual_seed(0)
    activations = torch.randn(8, 3, 2, dtype=torch.float64)
    total = 0.0
    for index, row in enumerate(activations.flatten(1).tolist()):
        squares = sum(value**2 for value in row)
        g, theta = (squares, 6.0) if goodness == "sum" else (squares / 6, 1.0)
        probability = 1 / (1 + math.exp(-(g - (theta if threshold is None else threshold))))
        total -= math.log(probability if index < 4 else 1 - probability)
    assert goodness_loss(activations, goodness, threshold).item() == pytest.approx(total / 8, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2, 3)], ids=["vectors", "images"])
def test_the_peer_loss_follows_the_running_means_of_the_units(shape):
    torch.manual_seed(0)
    activity = Activity(torch.zeros(shape)).double()
    running = [0.0] * 5
    for _ in range(3):
        activations = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        loss = activity(activations)
        for unit, values in enumerate(activations.transpose(0, 1).flatten(1).tolist()):
            running[unit] = 0.9 * running[unit] + 0.1 * sum(values) / len(values)
        mean = sum(running) / 5
        assert loss.item() == pytest.approx(sum((each - mean) ** 2 for each in running) / 5, rel=1e-9)
        loss.backward()
        assert activations.grad.abs().sum() > 0
    assert "mean" in activity.state_dict() and not activity.mean.requires_grad


def test_the_readout_learns_from_neutral_rows_and_changes_nothing_that_the_block_learns():
    network = build(nn.Linear(6, 5))
    component = network.components[0]
    x, labels = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    batch, losses = component(Microbatch({"x": x}, {"label": labels}))
    scores = component.readout(to_length(component.block(entered(component, x, None))))
    torch.testing.assert_close(losses[-1], nn.functional.cross_entropy(scores, labels))
    torch.testing.assert_close(network(x), scores)
    assert batch.tensors["x"].shape == (12, 5) and batch.beside["label"].shape == (4,)
    losses[-1].backward()
    learned = {name.partition(".")[0] for name, parameter in component.named_parameters() if parameter.grad is not None}
    assert learned == {"readout"}


def test_without_peer_normalisation_there_is_no_loss_of_it():
    network = build(nn.Linear(6, 5), peer=0)
    assert network.objective.losses == ("goodness", "readout") and not dict(network.components[0].named_buffers())


def test_blocks_learn_to_tell_true_labels_from_wrong_ones_and_exits_the_class():
    torch.manual_seed(0)
    network = build(*(nn.Sequential(nn.Linear(6 if n == 0 else 32, 32), nn.ReLU()) for n in range(2)))
    labels = torch.arange(300) % 3
    x = torch.cat([torch.zeros(300, 3), torch.eye(3)[labels] + 0.2 * torch.randn(300, 3)], dim=1)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    history = []
    for _ in range(100):
        batch = Microbatch({"x": x}, {"label": labels})
        for component in network.components:
            batch, losses = component(batch)
            sum(losses).backward()
            history.append(losses[0].item())
        optimizer.step()
        optimizer.zero_grad()
    assert history[-2] < 0.5 * history[0] and history[-1] < history[1]
    for exit in (1, 2):
        assert (network.predict(x, exit) == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(2, 7, dtype=torch.int64), r"objective.name: forward_forward writes labels into .* 'x' holds indices \(torch.int64\)"),
        (torch.zeros(2, 2), r"objective.name: forward_forward writes a number for each of 3 classes .* 'x' has 2"),
    ],
    ids=["text", "too small"],
)  # fmt: skip
def test_an_input_without_room_for_a_label_is_refused_by_name(sample, message):
    block = nn.Linear(2, 4) if sample.is_floating_point() else nn.Embedding(9, 4)
    with pytest.raises(UsageError, match=message):
        build(block, sample=sample)


def test_a_single_class_is_refused():
    with pytest.raises(UsageError, match=r"objective.name: forward_forward learns from wrong labels, .*count=1"):
        alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(1), "forward_forward")
