"""Data sets and the order of their samples."""

import os
from pathlib import Path

import pytest
import torch

import alrpc
from alrpc.data.dataset import count_micro_batches, micro_batches, shuffled


def test_digits_are_split_by_class_and_always_alike():
    first, second = alrpc.load_data("digits"), alrpc.load_data("digits")
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert (len(first.train), len(first.test)) == (1437, 360)
    assert first.train.inputs.shape[1:] == (1, 8, 8) and 0 <= first.train.inputs.min() <= first.train.inputs.max() <= 1
    assert torch.bincount(first.test.labels).min() >= 34  # of 36 on average
    flat = {tuple(row.flatten().tolist()) for row in first.test.inputs}
    assert not any(tuple(row.flatten().tolist()) in flat for row in first.train.inputs[:200])


def test_the_order_is_a_function_of_seed_and_epoch():
    order = shuffled(100, seed=1, epoch=2)
    assert torch.equal(order, shuffled(100, seed=1, epoch=2))
    assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(order, shuffled(100, seed=1, epoch=3))
    assert not torch.equal(order, shuffled(100, seed=2, epoch=2))


def test_reading_can_start_at_any_micro_batch():
    split = alrpc.load_data("digits").test
    order = shuffled(len(split), 0, 0)
    whole = list(micro_batches(split, order, 50))
    assert len(whole) == count_micro_batches(split, 50) == 8
    assert len(whole[-1][1]) == 10  # the last is smaller
    for start in (0, 3, 7):
        rest = list(micro_batches(split, order, 50, start))
        assert len(rest) == 8 - start
        assert all(
            torch.equal(a[0]["x"], b[0]["x"]) and torch.equal(a[1], b[1]) for a, b in zip(rest, whole[start:], strict=True)
        )


def test_labels_that_do_not_fit_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(alrpc.UserError, match="4 inputs and 3 labels"):
        alrpc.Dataset(alrpc.Split(x, torch.zeros(3)), alrpc.Split(x, torch.zeros(4)), alrpc.Values(1))
    with pytest.raises(alrpc.UserError, match="labels from 0 to 5 for 3 classes"):
        labels = torch.tensor([0, 1, 2, 5])
        alrpc.Dataset(alrpc.Split(x, labels), alrpc.Split(x, labels), alrpc.Classes(3))


@pytest.mark.skipif("ALRPC_DATA" not in os.environ, reason="ALRPC_DATA names no folder with MNIST")
def test_mnist_is_read_and_normalised():
    dataset = alrpc.load_data("mnist", Path(os.environ["ALRPC_DATA"]))
    assert dataset.train.inputs.shape == (60000, 1, 28, 28) and dataset.test.inputs.shape == (10000, 1, 28, 28)
    assert dataset.train.inputs.mean().abs() < 1e-3 and abs(dataset.train.inputs.std() - 1) < 1e-3


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(alrpc.UserError, match=r"data\.root: .* is not a directory"):
        alrpc.load_data("mnist", tmp_path / "nowhere")
    with pytest.raises(alrpc.UserError, match=r"data\.name: unknown data set 'mnits'"):
        alrpc.load_data("mnits")
