"""A run as a stream of packets, drawn."""

import pytest
import torch

import alrpc
from alrpc.config import parse_config
from alrpc.data.loader import epoch_size
from alrpc.training.optimizer import make_recipe
from alrpc.training.program import program

SIGNS = {"train": "t", "epoch": "|", "evaluate": "<", "test": "e", "evaluated": ">", "checkpoint": "C", "end": "."}


def draw(start: int = 0, stop_after: int | None = None, **checkpoint) -> str:
    """The stream of two epochs of three micro-batches, with two to test on: a sign a packet."""
    split = [alrpc.Split(torch.zeros(samples, 1), torch.zeros(samples, dtype=torch.int64)) for samples in (3, 2)]
    config = parse_config({"train": {"epochs": 2}, "data": {"batch_size": 1}, "checkpoint": checkpoint})
    asked = iter(range(100))
    stopping = (lambda: False) if stop_after is None else (lambda: next(asked) + 1 >= stop_after)
    return "".join(
        SIGNS[packet.kind]
        for packet in program(config, alrpc.Dataset(*split, alrpc.Classes(2)), make_recipe(config, 3), start, stopping)
    )


@pytest.mark.parametrize(
    ("options", "stream"),
    [
        ({}, "ttt|<ee>Cttt|<ee>C."),
        ({"epoch": False}, "ttt|<ee>ttt|<ee>C."),  # the end of a run has one in any case
        ({"every": 2, "epoch": False}, "ttCt|<ee>tCtt|<ee>C."),
        ({"every": 3, "epoch": False}, "ttt|<ee>Cttt|<ee>C."),  # never between an epoch's end and its evaluation
        ({"start": 3}, "ttt|<ee>C."),
        ({"start": 4}, "tt|<ee>C."),
        ({"start": 6}, "<ee>."),  # a run that ended between its last checkpoint and its summary
        ({"stop_after": 2}, "ttC."),
        ({"stop_after": 3}, "ttt|<ee>C."),
    ],
    ids=str,
)
def test_what_comes_when(options, stream):
    assert draw(**options) == stream


class Sampled(alrpc.Split):
    """A training split whose sampler gives another number of indices than it has samples."""

    given = 0

    def order(self, seed, epoch, batch_size):
        return torch.arange(self.given) % len(self)


@pytest.mark.parametrize(
    ("given", "stream"), [(1, "t|<ee>Ct|<ee>C."), (3, "ttt|<ee>Cttt|<ee>C."), (5, "ttttt|<ee>C" * 2 + ".")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sampler_of_ones_own_trains_on_the_train_split_alone(monkeypatch, given, stream, workers):
    monkeypatch.setattr(Sampled, "given", given)
    train, test = Sampled(torch.zeros(3, 1), torch.zeros(3).long()), alrpc.Split(torch.zeros(2, 1), torch.ones(2).long())
    dataset = alrpc.Dataset(train, test, alrpc.Classes(2))
    config = parse_config({"train": {"epochs": 2}, "data": {"batch_size": 1, "workers": workers}})
    size = epoch_size(dataset, 1, config.train, throughout=True)
    packets = list(program(config, dataset, make_recipe(config, size.micro_batches)))
    assert "".join(SIGNS[packet.kind] for packet in packets) == stream and size == (given, given, given)
    labels = {kind: {int(packet.tensors["label"]) for packet in packets if packet.kind == kind} for kind in ("train", "test")}
    assert labels == {"train": {0}, "test": {1}}


@pytest.mark.parametrize(
    ("counted", "message"),
    [
        (4, "train split: epoch 1 needs 4 micro-batches, but after 3 of them came one of the test split, epoch 1"),
        (2, "test split: epoch 1 needs 2 micro-batches, but after 0 of them came one of the train split, epoch 1"),
    ],
)
def test_a_micro_batch_of_another_split_is_refused(counted, message):
    train, test = (alrpc.Split(torch.zeros(samples, 1), torch.zeros(samples).long()) for samples in (3, 2))
    config = parse_config({"train": {"epochs": 2}, "data": {"batch_size": 1}})
    with pytest.raises(alrpc.UserError, match=message):
        list(program(config, alrpc.Dataset(train, test, alrpc.Classes(2)), make_recipe(config, counted)))
