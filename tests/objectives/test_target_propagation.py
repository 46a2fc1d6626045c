"""Difference target propagation: the targets, the losses against loops in float64, and when a block learns."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.config import Train
from alrpc.errors import UserError
from alrpc.objectives.base import LABEL, Microbatch
from alrpc.objectives.target_propagation import Inverse
from alrpc.objectives.targets import Classes, Values
from alrpc.training.optimizer import Recipe
from alrpc.training.step import forward, make_trainers, update

CPU = torch.device("cpu")


def network(blocks: int = 3, **options) -> alrpc.Network:
    torch.manual_seed(0)
    options = {"inverse_width": 4, "delay": 1, "noise": 0.0, "step": 0.3, **options}
    modules = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(blocks)]
    return alrpc.decouple(modules, torch.zeros(2, 3), Classes(2), "target_propagation", **options).double()


def microbatch(samples: int = 4) -> Microbatch:
    return Microbatch({"x": torch.randn(samples, 3).double()}, {LABEL: torch.arange(samples) % 2})


def times(layer: nn.Linear, x: list[float]) -> list[float]:
    """A linear layer, number by number."""
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [bias + sum(w * v for w, v in zip(row, x, strict=True)) for row, bias in rows]


def block(component: nn.Module, x: list[float]) -> list[float]:
    return torch.tensor(times(component.block[0], x), dtype=torch.float64).tanh().tolist()


def inverse(component: nn.Module, x: list[float]) -> list[float]:
    first, _, last = component.inverse.layers
    return times(last, [max(0.0, value) for value in times(first, x)])


def test_losses_and_targets_are_the_formulas():
    component = network().components[1]
    entered, left, targets = (torch.randn(4, 3).double() for _ in range(3))
    kept, heard = {"entered.x": entered, "left": left}, {"x": targets}
    _, losses = component(microbatch(), kept, heard)
    apart = restored = 0.0
    for x, target in zip(entered.tolist(), targets.tolist(), strict=True):
        output = block(component, x)
        apart += sum((a - b) ** 2 for a, b in zip(output, target, strict=True))
        restored += sum((a - b) ** 2 for a, b in zip(inverse(component, output), x, strict=True))
    assert losses[1].item() == pytest.approx(apart / (2 * 0.3 * 4), rel=1e-6)
    assert losses[2].item() == pytest.approx(restored / 12, rel=1e-6)
    sum(losses).backward()
    alone = [component.inverse.layers[0].weight.grad.clone(), component.block[0].weight.grad.clone()]
    component.zero_grad()
    _, again = component(microbatch(), kept, heard)
    again[1].backward()  # the block learns from its target alone, the inverse does not learn from it
    assert torch.equal(component.block[0].weight.grad, alone[1]) and component.inverse.layers[0].weight.grad is None

    reply = component.objective.reply(component, {}, {}, kept, heard)["x"]
    for index, (x, s, target) in enumerate(zip(entered.tolist(), left.tolist(), targets.tolist(), strict=True)):
        of_target, of_output = inverse(component, target), inverse(component, s)
        wanted = [a + b - c for a, b, c in zip(x, of_target, of_output, strict=True)]
        assert reply[index].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("step", [0.01, 0.5])
def test_the_block_before_the_last_gets_the_gradient_of_back_propagation_whatever_the_step(step):
    made = network(2, step=step)
    first, last = made.components
    batch = microbatch(5)
    s = first.block(batch.tensors["x"])
    loss = functional.cross_entropy(last.head(last.block(s)), batch.beside[LABEL])
    gradient, wanted = torch.autograd.grad(loss, (s, first.block[0].weight))
    heard = made.objective.reply(last, {"x": s.detach()}, {"x": gradient}, {}, {})
    kept = made.objective.keep(first, batch.tensors, Microbatch({"x": s.detach()}))
    made.objective.absorb(first, kept, heard)[0].backward()
    assert torch.allclose(first.block[0].weight.grad, wanted, rtol=1e-3, atol=1e-6)  # s and its target differ by little


def test_a_block_learns_when_its_target_has_come_over_all_that_follow():
    made = network(3, delay=2)
    trainers = make_trainers(made.components, Recipe(Train(lr=0.05), micro_batches=10), CPU)
    weights = [component.block[0].weight for component in made.components]
    learnt: list[list[int]] = [[], [], []]
    for step in range(6):
        batch = microbatch()
        for index, trainer in enumerate(trainers):
            before = weights[index].clone()
            output = forward(trainer, batch, step)
            update(trainer, output, step)
            if not torch.equal(before, weights[index]):
                learnt[index].append(step)
            batch = output.batch
    assert learnt == [[4, 5], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("entering", "leaving"),
    [((5, 6), (5, 4)), ((5, 7, 6), (5, 7, 4)), ((5, 3, 9, 8), (5, 6, 4, 4)), ((5, 3, 4, 4), (5, 6)), ((5, 6), (5, 2, 3, 3))],
)
def test_an_inverse_gives_what_the_block_was_given(entering, leaving):
    assert Inverse(torch.Size(entering), torch.Size(leaving), 8)(torch.randn(leaving)).shape == entering


def test_a_block_that_shortens_a_sequence_is_refused_by_number():
    blocks = [nn.Linear(3, 3), nn.Flatten(), nn.Linear(12, 3)]
    with pytest.raises(UserError, match=r"keep the length of a sequence, but block 2 makes \(2, 12\) of \(2, 4, 3\)"):
        alrpc.decouple(blocks, torch.zeros(2, 4, 3), Classes(2), "target_propagation")


def test_the_first_block_learns_from_its_targets():
    """It begins almost linear, so its exit, which teaches it nothing, cannot tell the parity of two bits."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(2, 16), nn.Tanh())] + [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(2)]
    nn.init.normal_(blocks[0][0].weight, std=0.1)
    made = alrpc.decouple(blocks, torch.zeros(2, 2), Classes(2), "target_propagation", inverse_width=32, noise=0.05)
    bits = torch.randint(0, 2, (2048, 2))
    data = alrpc.Split(bits.float() * 2 - 1 + 0.1 * torch.randn(2048, 2), bits.sum(dim=1) % 2)
    exits = alrpc.train(made, alrpc.Dataset(data, data, Classes(2)), epochs=20, lr=1e-2, batch_size=64)
    assert min(exits) > 0.95


def test_values_are_learnt_by_squared_error():
    blocks = [nn.Linear(3, 3) for _ in range(2)]
    made = alrpc.decouple(blocks, torch.zeros(2, 3), Values(2), "target_propagation")
    inputs = torch.randn(256, 3)
    data = alrpc.Split(inputs, inputs[:, :2] * 2 + 1)
    assert alrpc.train(made, alrpc.Dataset(data, data, Values(2)), epochs=30, lr=1e-2, batch_size=32)[-1] < 0.05
