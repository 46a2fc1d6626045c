"""Data sets and the order of their samples."""

import os
from pathlib import Path

import pytest
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

import alrpc
from alrpc.config import Train
from alrpc.data import checks
from alrpc.data.dataset import shuffled
from alrpc.data.loader import Request, epoch_size, load_micro_batches, read, requests


def test_digits_are_those_of_scikit_learn_in_one_split():
    digits = datasets.load_digits()
    split = train_test_split(digits.images, digits.target, test_size=360, stratify=digits.target, random_state=0)
    ours = alrpc.load_data("digits")
    own = (ours.train.inputs[:, 0] * 16, ours.test.inputs[:, 0] * 16, ours.train.labels, ours.test.labels)
    for theirs, of_ours in zip(split, own, strict=True):
        assert torch.equal(torch.tensor(theirs).to(of_ours.dtype), of_ours)


def test_the_order_is_a_function_of_seed_and_epoch():
    order = shuffled(100, seed=1, epoch=2)
    assert torch.equal(order, shuffled(100, seed=1, epoch=2))
    assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(order, shuffled(100, seed=1, epoch=3))
    assert not torch.equal(order, shuffled(100, seed=2, epoch=2))


def test_a_run_asks_for_each_epoch_in_its_order_and_then_for_the_test_split():
    dataset = alrpc.load_data("digits")
    wanted = list(requests(dataset, 100, Train(seed=5, epochs=2)))
    assert [request.split for request in wanted] == (["train"] * 15 + ["test"] * 4) * 2
    for epoch in (0, 1):
        of_epoch = [request.indices for request in wanted if (request.split, request.epoch) == ("train", epoch)]
        assert torch.equal(torch.cat(of_epoch), shuffled(1437, 5, epoch)) and len(of_epoch[-1]) == 37
    assert torch.equal(torch.cat([request.indices for request in wanted[15:19]]), torch.arange(360))


def test_worker_processes_read_the_same_micro_batches():
    dataset = alrpc.load_data("digits")
    here, there = (
        list(load_micro_batches(dataset, requests(dataset, 400, Train(seed=1, epochs=1)), seed=1, workers=workers))
        for workers in (0, 2)
    )
    assert len(here) == len(there) == 5
    for a, b in zip(here, there, strict=True):
        assert (a.split, a.epoch) == (b.split, b.epoch)
        assert torch.equal(a.tensors["x"], b.tensors["x"]) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda epoch: torch.arange(5), "its order of epoch 1 has the index 4; the split has samples 0 to 3"),
        (lambda epoch: torch.tensor([2, -1]), "its order of epoch 1 has the index -1"),
        (lambda epoch: torch.ones(4, dtype=torch.bool), r"its order of epoch 1 is torch\.bool \(4,\); give indices"),
        (lambda epoch: torch.arange(4.0), r"is torch\.float32 \(4,\); give indices"),
        (lambda epoch: torch.arange(4).view(2, 2), r"is torch\.int64 \(2, 2\); give indices"),
        (lambda epoch: torch.arange(0), r"is torch\.int64 \(0,\); give indices"),
        (lambda epoch: [0, 1], "is list; give indices"),
        (lambda epoch: torch.arange(4 - epoch), "gives 1 micro-batches in epoch 3, but 2 in epoch 1"),
    ],
)
def test_an_order_that_cannot_be_trained_in_is_refused_before_training(monkeypatch, order, message):
    monkeypatch.setattr(alrpc.Split, "order", lambda split, seed, epoch, batch_size: order(epoch))
    split = alrpc.Split(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    dataset = alrpc.Dataset(split, split, alrpc.Classes(2))
    network = alrpc.associate([torch.nn.Linear(2, 2)], dataset.sample, dataset.target)
    before = network.digest()
    with pytest.raises(alrpc.UserError, match=f"train split: .*{message}"):
        alrpc.train(network, dataset, epochs=3, batch_size=2)
    assert network.digest() == before


def test_an_order_of_this_package_is_made_for_no_epoch_before_it_is_needed(monkeypatch):
    made = []
    monkeypatch.setattr("alrpc.data.dataset.shuffled", lambda count, seed, epoch: made.append(epoch) or torch.arange(count))
    split = alrpc.Split(torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 0]))
    assert epoch_size(alrpc.Dataset(split, split, alrpc.Classes(2)), 2, Train(epochs=1000), throughout=True) == (5, 3, 5)
    assert set(made) <= {0}


def test_a_last_micro_batch_may_differ_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr(alrpc.Split, "order", lambda split, seed, epoch, batch_size: torch.arange(4 - epoch))
    split = alrpc.Split(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    assert epoch_size(alrpc.Dataset(split, split, alrpc.Classes(2)), 2, Train(epochs=2), throughout=True) == (4, 2, 4)


def with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy whose row 3 has another number."""
    changed = tensor.clone()
    changed.view(len(tensor), -1)[3, -1] = value
    return changed


X, CLASSES, NUMBERS = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 2)
BITS = torch.eye(3, dtype=torch.uint8)[CLASSES]
THREE, TWO, MANY = alrpc.Classes(3), alrpc.Values(2), alrpc.Labels(3)


@pytest.mark.parametrize(
    ("inputs", "labels", "target", "message"),
    [
        (X, CLASSES[:5], THREE, "split: 6 inputs and 5 labels"),
        (X[:0], CLASSES[:0], THREE, "split: 0 inputs and 0 labels"),
        (X, CLASSES.view(6, 1), THREE, r"labels are torch.int64 \(6, 1\); for Classes\(count=3\) they are class indices"),
        (X, torch.eye(3)[CLASSES], THREE, r"labels are torch.float32 \(6, 3\); for Classes"),
        (X, CLASSES.float(), THREE, r"labels are torch.float32 \(6,\); for Classes"),
        (X, with_one(CLASSES, 5), THREE, r"label 3 is 5; the classes of Classes\(count=3\) are 0 to 2"),
        (X, with_one(CLASSES, -1), THREE, "label 3 is -1"),
        (X, CLASSES.tolist(), THREE, "labels are of type list; give a tensor"),
        (X, NUMBERS[:, :1], TWO, r"labels are torch.float32 \(6, 1\); for Values\(width=2\) they are numbers \(N, 2\)"),
        (X, NUMBERS[:, 0], TWO, r"labels are torch.float32 \(6,\); for Values"),
        (X, with_one(NUMBERS, float("nan")), TWO, "label 3 has nan or inf"),
        (X, with_one(NUMBERS.double(), 1e300), TWO, "label 3 has nan or inf; values must be finite in torch.float32"),
        (with_one(X, float("nan")), CLASSES, THREE, "input 3 has nan or inf"),
        (with_one(X, float("inf")), CLASSES, THREE, "input 3 has nan or inf"),
        (X.numpy(), CLASSES, THREE, "inputs are of type ndarray; give a tensor"),
        (X, CLASSES, MANY, r"labels are torch.int64 \(6,\); for Labels\(count=3\) they are 0 and 1, \(N, 3\)"),
        (X, BITS[:, :2], MANY, r"labels are torch.uint8 \(6, 2\); for Labels\(count=3\) they are 0 and 1, \(N, 3\)"),
        (X, with_one(BITS, 2), MANY, r"label 3 has 2 at 2; each of the labels of Labels\(count=3\) is 0 or 1"),
        (X, with_one(BITS.float(), float("nan")), MANY, "label 3 has nan at 2"),
        (X, with_one(BITS.float(), 0.5), MANY, "label 3 has 0.5 at 2"),
        (X, CLASSES, 3, r"target: got 3; give alrpc.Classes\(count\)"),
    ],
)
@pytest.mark.parametrize("name", ["train", "test"])
def test_what_cannot_be_trained_on_is_named_with_its_split_and_index(inputs, labels, target, message, name):
    good = alrpc.Split(X, {TWO: NUMBERS, MANY: BITS}.get(target, CLASSES))
    with pytest.raises(alrpc.UserError, match=message) as refused:
        alrpc.Dataset(**{"train": good, "test": good, name: alrpc.Split(inputs, labels)}, target=target)
    assert target == 3 or str(refused.value).startswith(f"{name} split: ")


def test_a_test_split_of_another_type_is_refused_before_its_first_evaluation():
    for inputs in (X.double(), X.view(6, 1, 2)):
        with pytest.raises(alrpc.UserError, match=r"test split: inputs are .* but those of the train split torch.float32"):
            alrpc.Dataset(alrpc.Split(X, CLASSES), alrpc.Split(inputs, CLASSES), THREE)


def test_labels_of_every_type_that_fits_are_taken():
    for labels in (CLASSES, CLASSES.to(torch.uint8), CLASSES.int()):
        alrpc.Dataset(alrpc.Split(X, labels), alrpc.Split(X, labels), THREE)
    for labels in (NUMBERS[:, 0], NUMBERS[:, :1], CLASSES, NUMBERS[:, 0].half()):
        alrpc.Dataset(alrpc.Split(X, labels), alrpc.Split(X, labels), alrpc.Values(1))
    for labels in (BITS, BITS.bool(), BITS.float(), BITS.double(), BITS.long()):
        alrpc.Dataset(alrpc.Split(X, labels), alrpc.Split(X, labels), alrpc.Labels(3))


def test_the_last_number_of_a_tensor_larger_than_one_look_is_seen(monkeypatch):
    monkeypatch.setattr(checks, "AT_ONCE", 4)
    assert checks.first_not_finite(torch.full((6, 2), 3e38)) is None  # although the sum of two is infinite
    assert checks.first_not_finite(with_one(torch.full((4, 3), 3e38), float("inf"))) == 3


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
def test_a_target_of_no_size_is_refused(value):
    for target in (alrpc.Classes, alrpc.Values):
        with pytest.raises(alrpc.UserError, match=f"{target.__name__}: (count|width) is .*; give a whole number"):
            target(value)


class Own(alrpc.Split):
    """A split whose inputs are a list; its batch gives what a test says."""

    given = None

    def batch(self, indices):
        return Own.given(indices)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda i: ({"x": X[i]}, CLASSES[i].view(-1, 1)), r"labels are torch.int64 \(2, 1\)"),
        (lambda i: ({"x": X[i]}, with_one(CLASSES, 9)[i]), "label 3 is 9"),
        (lambda i: ({"x": with_one(X, float("nan"))[i]}, CLASSES[i]), "'x' of sample 3 has nan or inf"),
        (lambda i: ({"x": X[:1]}, CLASSES[i]), r"its batch\(\) gave \(1, 2\) as 'x' of 2 samples"),
        (lambda i: ({"x": X[i]}, CLASSES), r"its batch\(\) gave \(6,\) as 'labels' of 2 samples"),
        (lambda i: ({"x": [1, 2]}, CLASSES[i]), r"its batch\(\) gave list as 'x'"),
        (lambda i: X[i], r"its batch\(\) gave Tensor; it must give a dict of tensors, and labels"),
    ],
)
def test_what_a_batch_of_ones_own_gives_is_checked_as_it_is_read(monkeypatch, given, message):
    split = Own(list(X), CLASSES)
    dataset = alrpc.Dataset(split, split, THREE)
    monkeypatch.setattr(Own, "given", given)
    with pytest.raises(alrpc.UserError, match=f"train split: {message}"):
        read(dataset, 0, Request("train", 0, torch.tensor([2, 3])))


@pytest.mark.skipif("ALRPC_DATA" not in os.environ, reason="ALRPC_DATA names no folder with MNIST")
def test_mnist_is_read_and_normalised():
    dataset = alrpc.load_data("mnist", root=Path(os.environ["ALRPC_DATA"]))
    train, test = (split.batch(torch.arange(len(split)))[0]["x"] for split in (dataset.train, dataset.test))
    assert train.shape == (60000, 1, 28, 28) and test.shape == (10000, 1, 28, 28)
    assert train.mean().abs() < 1e-3 and abs(train.std() - 1) < 1e-3


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(alrpc.UserError, match=r"data\.root: .* is not a directory"):
        alrpc.load_data("mnist", root=tmp_path / "nowhere")
    with pytest.raises(alrpc.UserError, match=r"data\.name: unknown data set 'mnits'"):
        alrpc.load_data("mnits")


class Unreadable(alrpc.Split):
    def batch(self, indices):
        raise alrpc.UserError("photo.png: not a readable image")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_said_in_one_line_by_a_worker_too(workers):
    split = Unreadable(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(alrpc.UserError, match=r"\Aphoto\.png: not a readable image\Z"):
        dataset = alrpc.Dataset(split, split, alrpc.Values(1))
        next(load_micro_batches(dataset, requests(dataset, 2, Train(epochs=1)), seed=0, workers=workers))


class Unsendable(alrpc.Split):
    def __reduce__(self):
        raise TypeError("cannot pickle 'lock' object")


def test_data_that_cannot_be_sent_to_a_worker_is_said_in_one_line():
    split = Unsendable(torch.zeros(4, 2), torch.zeros(4))
    dataset = alrpc.Dataset(split, split, alrpc.Values(1))
    assert len(list(load_micro_batches(dataset, requests(dataset, 2, Train(epochs=1)), seed=0))) == 4
    with pytest.raises(alrpc.UserError, match=r"\Adata\.workers: got 1, .* cannot pickle 'lock' object; use data\.workers=0"):
        next(load_micro_batches(dataset, requests(dataset, 2, Train(epochs=1)), seed=0, workers=1))
