"""A run as a stream of packets, drawn."""

import pytest
import torch

import alrpc
from alrpc.config import parse_config
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
