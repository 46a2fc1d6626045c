"""The update of one component: what it draws, what it steps, what it hands on and when."""

import copy
import shutil

import pytest
import torch
from torch import nn

import alrpc
from alrpc.config import Train
from alrpc.errors import NonFinite
from alrpc.objectives.base import Microbatch
from alrpc.training.meters import LossMeter
from alrpc.training.optimizer import Recipe
from alrpc.training.step import forward, make_trainer, update

CPU = torch.device("cpu")


def component(*layers: nn.Module, seed: int = 0):
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Linear(6, 5), *layers)]
    return alrpc.associate(blocks, torch.zeros(2, 6), alrpc.Classes(3), target_width=4, bridge_widths=[8]).components[0]


def make(part, number: int = 1, micro_batches: int = 4, **fields):
    part.number = number
    return make_trainer(part, Recipe(Train(**fields), micro_batches), CPU)


def train(trainer, tensors, target, step: int = 0):
    """Train on a micro-batch; gives the two losses."""
    losses, _ = update(trainer, forward(trainer, Microbatch(tensors, {"target": target}), step), step)
    return losses


def halves(part):
    """The parameters that each of the two losses trains."""
    return part.objective.parameter_groups(part).values()


def batch(size: int = 8, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (size,), generator=generator)
    return {"x": torch.randn(size, 6, generator=generator)}, alrpc.Classes(3).represent(labels)


def states_after(part, steps: int, **fields) -> dict[str, torch.Tensor]:
    trained = make(part, **fields)
    for step in range(steps):
        train(trained, *batch(seed=step), step)
    return part.state_dict()


def test_random_numbers_depend_on_seed_component_and_step_alone():
    def hand(number, step, seed, noise):
        torch.manual_seed(noise)  # whatever ran before in this process
        tensors, target = batch()
        trainer = make(component(nn.Dropout(0.5)), number, seed=seed)
        return forward(trainer, Microbatch(tensors, {"target": target}), step).batch.tensors["x"]

    reference = hand(number=1, step=0, seed=0, noise=1)
    assert torch.equal(reference, hand(number=1, step=0, seed=0, noise=2))
    for other in ({"number": 2}, {"step": 1}, {"seed": 1}):
        assert not torch.equal(reference, hand(**{"number": 1, "step": 0, "seed": 0, "noise": 1, **other}))


def test_a_forward_pass_changes_no_parameter_and_an_update_all_of_them():
    part = component()
    before = copy.deepcopy(part.state_dict())
    trainer, (tensors, target) = make(part), batch()
    output = forward(trainer, Microbatch(tensors, {"target": target}), 0)
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
    assert all(parameter.grad is None for parameter in part.parameters())
    update(trainer, output, 0)
    assert all(not torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_accumulation_averages_and_steps_once_a_group():
    tensors, target = batch(size=8)
    whole = component()
    train(make(whole, optimizer="sgd", lr=0.1, momentum=0, schedule="constant"), tensors, target)
    parts = component()
    two = make(parts, optimizer="sgd", lr=0.1, momentum=0, schedule="constant", accumulate=2)
    for step, rows in enumerate((slice(0, 4), slice(4, 8))):
        train(two, {"x": tensors["x"][rows]}, target[rows], step)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_group_never_crosses_the_end_of_an_epoch():
    part = component()
    trained = make(part, micro_batches=3, accumulate=2, schedule="constant")
    moved = []
    for step in range(6):
        before = [parameter.detach().clone() for parameter in part.parameters()]
        train(trained, *batch(seed=step), step)
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True)))
    assert moved == [False, True, True, False, True, True]


def test_the_two_halves_have_rates_of_their_own():
    part = component()
    before = copy.deepcopy(part)
    train(make(part, optimizer="sgd", momentum=0, lr=0.5, target_lr=1e-12, schedule="constant"), *batch())
    (own, target), (own_before, target_before) = halves(part), halves(before)
    assert all(not torch.equal(a, b) for a, b in zip(own, own_before, strict=True))
    for a, b in zip(target, target_before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_the_rates_follow_the_schedule_over_the_whole_run():
    trained = make(component(), epochs=2, lr=0.1, target_lr=0.01, end_lr=0.02, schedule="linear")
    rates = []
    for step in range(8):
        train(trained, *batch(), step)
        rates.append([group["lr"] for group in trained.optimizer.param_groups])
    assert rates[0] == pytest.approx([0.1, 0.01])
    assert rates[-1] == pytest.approx([0.02, 0.002])


def test_each_loss_has_its_gradient_clipped():
    part = component()
    before = copy.deepcopy(part)
    train(make(part, optimizer="sgd", momentum=0, lr=1.0, clip_norm=1e-3, schedule="constant"), *batch())
    for now, then in zip(halves(part), halves(before), strict=True):
        moved = torch.cat([(a - b).flatten() for a, b in zip(now, then, strict=True)]).norm()
        assert moved.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns_the_micro_batch(optimizer):
    trained = make(component(), optimizer=optimizer, lr=0.05, schedule="constant")
    losses = [train(trained, *batch(), step) for step in range(30)]
    assert losses[-1][0] < losses[0][0] / 2 and losses[-1][1] < losses[0][1] / 2


def test_a_block_without_parameters_is_a_component_too():
    network = alrpc.associate([nn.Flatten()], torch.zeros(1, 2, 3), alrpc.Classes(3), bridges=[nn.Identity()], target_width=6)
    associated, _ = train(make(network.components[0]), {"x": torch.randn(4, 2, 3)}, batch(4)[1])
    assert associated > 0


def test_a_loss_that_is_not_finite_stops_with_component_step_and_value():
    meter = LossMeter(3, ("associated", "autoencoder"))
    meter.add(40, (torch.tensor(1.0), torch.tensor(2.0)))
    with pytest.raises(NonFinite, match="autoencoder loss of component 3 is inf at step 41"):
        meter.add(41, (torch.tensor(1.0), torch.tensor(float("inf"))))


def test_losses_are_averaged_between_two_events():
    meter = LossMeter(1, ("associated", "autoencoder"))
    assert meter.take(1, 1, 0) is None
    for step, loss in enumerate((1.0, 2.0)):
        meter.add(step, (torch.tensor(loss), torch.tensor(2 * loss)))
    assert meter.take(stage=1, epoch=1, step=2).losses == {"associated": 1.5, "autoencoder": 3.0}
    assert meter.take(1, 1, 2) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_changes_the_arithmetic_but_not_the_parameters_type(precision):
    part = component()
    trained = trained, (tensors, target) = make_trainer(part, Recipe(Train(), 4, precision), CPU), batch()
    output = forward(trained, Microbatch(tensors, {"target": target}), 0)
    losses, _ = update(trained, output, 0)
    exact = train(make(component()), *batch())
    assert output.batch.tensors["x"].dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert {value.dtype for value in part.state_dict().values()} == {torch.float32}
    assert (losses == exact) is (precision == "fp32")
    for loss, other in zip(losses, exact, strict=True):
        assert loss.item() == pytest.approx(other.item(), rel=0.02)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_component_learns_the_same():
    plain, compiled = component(), component()
    trainers = [make_trainer(part, Recipe(Train(), 4, compile=part is compiled), CPU) for part in (plain, compiled)]
    for step in range(3):
        one, other = (train(trainer, *batch(seed=step), step) for trainer in trainers)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
