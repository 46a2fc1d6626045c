"""Convolutions with the channels last in memory: the same arithmetic in another order, and a state that can be gone on from."""

import pytest
import torch
from torch import nn

import alrpc
from alrpc.checkpoint.state import restore, snapshot
from alrpc.config import load_config
from alrpc.objectives.base import Microbatch
from alrpc.system import move
from alrpc.training.optimizer import make_recipe
from alrpc.training.step import forward, make_trainer, update

CPU = torch.device("cpu")


def make(channels_last: bool):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    network = alrpc.decouple([block], torch.zeros(2, 3, 8, 8), alrpc.Classes(4))
    config = load_config(None, [f"channels_last={str(channels_last).lower()}", "train.accumulate=2", "train.clip_norm=1"])
    return make_trainer(network.components[0], make_recipe(config, micro_batches=20), CPU)


def train(trainer, first: int, after: int) -> list[float]:
    losses = []
    for step in range(first, after):
        generator = torch.Generator().manual_seed(step)
        images = {"x": torch.randn(6, 3, 8, 8, generator=generator)}
        label = torch.randint(0, 4, (6,), generator=generator)
        losses.append(update(trainer, forward(trainer, Microbatch(images, {"label": label}), step), step)[0][0].item())
    return losses


def test_the_arithmetic_is_that_of_the_usual_layout():
    usual, last = make(False), make(True)
    assert usual.component.block[0].weight.is_contiguous()
    assert last.component.block[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert train(last, 0, 8) == pytest.approx(train(usual, 0, 8), rel=1e-4)


def test_a_state_between_two_optimizer_steps_is_gone_on_from():
    whole, interrupted, resumed = make(True), make(True), make(True)
    expected = train(whole, 0, 12)
    train(interrupted, 0, 7)
    restore(resumed, snapshot(interrupted))
    assert train(resumed, 7, 12) == expected[7:]
    for one, other in zip(whole.component.state_dict().values(), resumed.component.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_other_convolutions_stay_as_they_are():
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3))
    one, two, three = move(module, CPU, channels_last=True)
    assert one.weight.is_contiguous() and three.weight.is_contiguous()
    assert two.weight.is_contiguous(memory_format=torch.channels_last)
