"""Synthetic gradients: what a component learns from at once, from what it hears later, and what it sends back."""

import pytest
import torch
from torch import nn

import alrpc
from alrpc.config import Train
from alrpc.errors import UserError
from alrpc.objectives.base import LABEL, Microbatch
from alrpc.objectives.synthetic import Synthesiser
from alrpc.objectives.targets import Classes, Values
from alrpc.training.optimizer import Recipe
from alrpc.training.step import forward, make_trainers, update

CPU = torch.device("cpu")


def network(width: int = 3, target=None, **options) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)]
    options = {"synthesiser_width": 4, "delay": 1, **options}
    made = alrpc.decouple(blocks, torch.zeros(2, width), target or Classes(2), "synthetic", **options)
    for component in made.components[:-1]:  # by default they are 0, which would hide much
        nn.init.normal_(component.synthesiser.rest[-1].weight)
    return made.double()


def times(layer: nn.Linear, x: list[float]) -> list[float]:
    """A linear layer, number by number."""
    bias = layer.bias.tolist() if layer.bias is not None else [0.0] * layer.out_features
    return [b + sum(w * v for w, v in zip(row, x, strict=True)) for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def synthesise(synthesiser: nn.Module, x: list[float], label: int) -> list[float]:
    """What a synthesiser predicts for one sample of two classes, by loops."""
    code = [1.0 if index == label else 0.0 for index in range(2)]
    hidden = [max(0.0, a + b) for a, b in zip(times(synthesiser.first, x), times(synthesiser.label, code), strict=True)]
    _, middle, _, last = synthesiser.rest
    return times(last, [max(0.0, value) for value in times(middle, hidden)])


def test_the_block_learns_from_the_predicted_gradient_and_its_synthesiser_from_the_one_it_hears():
    component = network().components[1]
    torch.manual_seed(1)
    s, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    kept = {"x": torch.randn(4, 3, dtype=torch.float64), LABEL: torch.tensor([1, 0, 0, 1])}
    heard = {"x": torch.randn(4, 3, dtype=torch.float64)}
    entered = s.clone().requires_grad_()
    _, losses = component(Microbatch({"x": entered}, {LABEL: labels}), kept, heard)
    sum(losses).backward()

    linear, weight = component.block[0], component.block[0].weight.tolist()
    of_weight, of_entered = [[0.0] * 3 for _ in range(3)], [[0.0] * 3 for _ in range(5)]
    for i, x in enumerate(s.tolist()):
        out = [torch.tanh(torch.tensor(value, dtype=torch.float64)).item() for value in times(linear, x)]
        predicted = synthesise(component.synthesiser, out, int(labels[i]))
        for row in range(3):
            through = predicted[row] / 5 * (1 - out[row] ** 2)
            for column in range(3):
                of_weight[row][column] += through * x[column]
                of_entered[i][column] += through * weight[row][column]
    assert torch.allclose(linear.weight.grad, torch.tensor(of_weight, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(entered.grad, torch.tensor(of_entered, dtype=torch.float64), rtol=1e-6)

    total = 0.0
    for i, x in enumerate(kept["x"].tolist()):
        predicted = synthesise(component.synthesiser, x, int(kept[LABEL][i]))
        total += sum((p - 4 * g) ** 2 for p, g in zip(predicted, heard["x"][i].tolist(), strict=True))
    assert losses[1].item() == pytest.approx(total / 12, rel=1e-6)  # float32 where bf16 may come in
    assert component.synthesiser.first.weight.grad.abs().sum() > 0 and component.head[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_component_l_is_sent_the_true_gradient_and_learns_from_it_so_many_micro_batches_later(accumulate):
    made = network(delay=2)
    trainers = make_trainers(made.components, Recipe(Train(accumulate=accumulate, lr=0.1), micro_batches=10), CPU)
    torch.manual_seed(2)
    of_synthesiser = []
    for step in range(6):
        batch = Microbatch({"x": torch.randn(4, 3, dtype=torch.float64)}, {LABEL: torch.tensor([0, 1, 1, 0])})
        for trainer in trainers:
            output = forward(trainer, batch, step)
            if trainer is trainers[1]:
                of_synthesiser.append(output.losses[1].item())
                s = output.batch.tensors["x"].clone().requires_grad_()
                last = made.components[2]
                loss = nn.functional.cross_entropy(last.head(last.block(s)).float(), batch.beside[LABEL])
                (true,) = torch.autograd.grad(loss, s)
            update(trainer, output, step)
            batch = output.batch
        assert torch.allclose(trainers[1].ring.heard[-1]["x"], true, rtol=1e-5, atol=1e-9)
    assert of_synthesiser[:2] == [0, 0] and all(loss > 0 for loss in of_synthesiser[2:])


def test_a_block_learns_nothing_from_a_prediction_of_zero():
    made = network()
    nn.init.zeros_(made.components[0].synthesiser.rest[-1].weight)
    before = made.components[0].block[0].weight.clone()
    trainer = make_trainers(made.components[:1], Recipe(Train(lr=0.1, weight_decay=0.0), micro_batches=2), CPU)[0]
    batch = Microbatch({"x": torch.randn(4, 3, dtype=torch.float64)}, {LABEL: torch.tensor([0, 1, 1, 0])})
    update(trainer, forward(trainer, batch, 0), 0)
    assert torch.equal(made.components[0].block[0].weight, before)


@pytest.mark.parametrize("shape", [(5, 6), (5, 7, 6), (5, 6, 8, 8)], ids=["vectors", "sequences", "images"])
@pytest.mark.parametrize("code", [None, 3])
def test_a_synthesiser_gives_gradients_of_every_shape_which_are_zero_at_first(shape, code):
    x, given = torch.randn(shape), () if code is None else (torch.eye(3)[[0, 1, 2, 0, 1]],)
    synthesiser = Synthesiser(x.shape, 8, code)
    assert torch.equal(synthesiser(x, *given), torch.zeros(shape))
    nn.init.normal_(synthesiser.rest[-1].weight)
    first = synthesiser(x, *given)
    assert first.shape == x.shape
    if code is not None:
        assert not torch.allclose(first, synthesiser(x, torch.eye(3)[[1, 1, 1, 1, 1]]))


def test_the_first_block_learns_from_what_it_hears():
    """It begins almost linear, so its exit, which teaches it nothing, cannot tell the parity of two bits."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(2, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 16), nn.Tanh())]
    nn.init.normal_(blocks[0][0].weight, std=0.01)
    made = alrpc.decouple(blocks, torch.zeros(2, 2), Classes(2), "synthetic", synthesiser_width=32)
    bits = torch.randint(0, 2, (2048, 2))
    data = alrpc.Split(bits.float() * 2 - 1 + 0.1 * torch.randn(2048, 2), bits.sum(dim=1) % 2)
    exits = alrpc.train(made, alrpc.Dataset(data, data, Classes(2)), epochs=12, lr=1e-2, batch_size=64)
    assert min(exits) > 0.95


def test_values_are_learnt_by_squared_error():
    made = network(target=Values(2))
    for component in made.components:
        _, (exit, _) = component(Microbatch({"x": torch.randn(4, 3).double()}, {LABEL: torch.randn(4, 2)}))
        assert exit.isfinite()


def test_a_block_that_gives_no_floats_is_refused_by_number():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.long()

    blocks = [nn.Linear(3, 3), Rounded(), nn.Embedding(5, 3)]
    with pytest.raises(UserError, match=r"synthetic teaches blocks that give floats, but block 2 gives int64 \(2, 3\)"):
        alrpc.decouple(blocks, torch.zeros(2, 3), Classes(2), "synthetic", heads=[None, Counted(), None])


class Counted(nn.Module):
    def forward(self, x):
        return x[:, :2].float()
