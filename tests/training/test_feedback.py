"""The ring of a component: what is saved of it goes on where it was, and what is not its own is refused."""

import pytest
import torch
from torch import nn

import alrpc
from alrpc.checkpoint.saver import write_files
from alrpc.checkpoint.state import check_state, restore, snapshot
from alrpc.config import Train
from alrpc.errors import NonFinite
from alrpc.events import Written
from alrpc.objectives.base import LABEL, Microbatch
from alrpc.objectives.targets import Classes
from alrpc.training.optimizer import Recipe
from alrpc.training.step import Trainer, forward, make_trainers, update

CPU = torch.device("cpu")
OBJECTIVES = ["synthetic", "target_propagation"]


class Doubled(nn.Module):
    """Works in place on what it is given, as nn.ReLU(inplace=True) does."""

    def forward(self, x):
        return x.mul_(2)


def made(name: str, **fields) -> list[Trainer]:
    torch.manual_seed(0)
    blocks = [nn.Sequential(Doubled(), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Dropout(0.2)) for _ in range(3)]
    network = alrpc.decouple(blocks, torch.zeros(2, 6), Classes(2), name, delay=2)
    return make_trainers(network.components, Recipe(Train(lr=0.02, accumulate=3, **fields), micro_batches=10), CPU)


def train(trainers: list[Trainer], first: int, end: int) -> None:
    for step in range(first, end):
        torch.manual_seed(100 + step)
        samples = 3 if step % 4 == 3 else 5
        x, labels = torch.randn(samples, 6), torch.randint(0, 2, (samples,))
        batch = Microbatch({"x": x}, {LABEL: labels})
        for trainer in trainers:
            output = forward(trainer, batch, step)
            update(trainer, output, step)
            batch = output.batch


def states(trainers: list[Trainer]) -> list[dict]:
    for trainer in trainers:
        trainer.ring.settle()
    return [snapshot(trainer) for trainer in trainers]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 7])
def test_what_is_restored_goes_on_with_the_same_bits(name, step):
    whole, stopped, resumed = made(name), made(name), made(name)
    train(whole, 0, 9)
    train(stopped, 0, step)
    for trainer, state in zip(resumed, states(stopped), strict=True):
        restore(trainer, state)
    train(resumed, step, 9)
    for one, other in zip(states(whole), states(resumed), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({"feedback.kept.7.x": torch.zeros(5, 6)}), "feedback.kept: got micro-batches"),
        (lambda state: state.update({"feedback.heard.2.x": torch.zeros(5, 6)}), "feedback.heard.2: with 2 micro-batches"),
        (lambda state: state.update({"feedback.said.0.x": torch.zeros(5, 6)}), "feedback.said.0.x: it must be left out"),
        (lambda state: state.update({"feedback.kept.one.x": torch.zeros(5, 6)}), "feedback.kept.one.x: it must be left out"),
        (
            lambda state: state.update({"feedback.heard.0.x": torch.zeros(5, 7)}),
            r"feedback.kept.0 and feedback.heard.0: x: got",
        ),
        (lambda state: state.update({"feedback.heard.1.x": torch.zeros(1)}), r"feedback.kept.1 and feedback.heard.1: "),
    ],
)
def test_a_ring_that_is_not_the_component_s_is_refused(name, change, message):
    trainers = made(name)
    train(trainers, 0, 2)
    state = states(trainers)[1]
    check_state(trainers[1].component, "adam", state)
    change(state)
    with pytest.raises(ValueError, match=message):
        check_state(trainers[1].component, "adam", state)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_optimizer_is_given_what_learns_only_from_a_later_step_on(name, optimizer):
    trainers = made(name, optimizer=optimizer)
    train(trainers, 0, 9)
    assert all(value.isfinite().all() for state in states(trainers) for value in state.values() if value.is_floating_point())


def test_what_is_heard_need_not_be_finite_to_be_saved(tmp_path):
    """With train.nonfinite=skip it is passed over as it is absorbed; parameters never are other than finite."""
    state = {"block.weight": torch.ones(2), "feedback.heard.0.x": torch.tensor([torch.inf])}
    assert isinstance(write_files(tmp_path, 1, 5, {"component-001.safetensors": state}), Written)
    with pytest.raises(NonFinite, match=r"block\.weight of component-001"):
        write_files(tmp_path, 1, 5, {"component-001.safetensors": {"block.weight": torch.tensor([torch.nan])}})
