"""Training by steps: of pass after pass, and of streams that need have no end."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

import alrpc
from alrpc.config import parse_config
from alrpc.data import for_run
from alrpc.data.loader import epoch_size, load_micro_batches, requests

NUMBERS = np.random.default_rng(0)
TEST = NUMBERS.normal(size=(12, 5)), np.arange(12) % 3


class Endless(IterableDataset):
    """Samples whose first number is their position, and whose second one is drawn from torch's generator."""

    def __init__(self, begin=0, end=None):
        self.begin, self.end, self.begun, self.given = begin, end, 0, 0

    def __iter__(self):
        self.begun += 1
        for position in itertools.count(self.begin):
            if position == self.end:
                return
            self.given += 1
            yield np.array([position, torch.rand(()).item(), *numbers_of(position)], dtype="f4"), position % 3


def numbers_of(position):
    return np.random.default_rng(position).normal(position % 3, size=3)


class Skipping(Endless):
    """Begins where it is told, as a `datasets.IterableDataset` does."""

    def skip(self, count):
        return Skipping(self.begin + count)


def read(dataset, config):
    """The micro-batches of a run on which it trains."""
    parts = for_run(dataset, config.data, config.train)
    wanted = requests(parts, config.data.batch_size, config.train.seed, config.train.epochs)
    loaded = load_micro_batches(parts, wanted, config.train.seed, config.data.workers)
    return [(each.epoch, each.tensors["x"], each.labels) for each in loaded if each.split == "train"]


def by_steps(steps, every=1000, **data):
    return parse_config({"train": {"steps": steps, "evaluate_every": every}, "data": data})


def train(dataset, **fields):
    torch.manual_seed(0)
    network = alrpc.associate([torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)], dataset.sample, dataset.target, target_width=4)
    alrpc.train(network, dataset, batch_size=4, schedule="constant", **fields)
    return network.digest()


def test_steps_are_taken_of_pass_after_pass():
    train = alrpc.Split(torch.arange(7.0)[:, None], torch.arange(7) % 2)
    dataset = alrpc.Dataset(train, train, alrpc.Classes(2))
    config = by_steps(8, 2, batch_size=2)
    assert config.train.epochs == 4
    batches = read(dataset, config)
    assert [epoch for epoch, _, _ in batches] == [0, 0, 1, 1, 2, 2, 3, 3]
    passes = [torch.cat([x.flatten() for _, x, _ in batches[at : at + 3]]).tolist() for at in (0, 3)]
    for number, samples in enumerate(passes):  # of 7 samples one fills no micro-batch
        assert samples == train.order(config.train.seed, number, 2)[:6].tolist()
    assert passes[0] != passes[1]
    assert epoch_size(for_run(dataset, config.data, config.train), 2, 0, 4) == (4, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_read_in_order_and_no_further_than_it_is_wanted(workers):
    stream = Endless()
    batches = read(alrpc.as_dataset(stream, TEST), by_steps(6, 3, batch_size=4, workers=workers))
    assert torch.cat([x[:, 0] for _, x, _ in batches]).tolist() == [*range(24)]
    assert torch.cat([labels for _, _, labels in batches]).tolist() == [position % 3 for position in range(24)]
    drawn = torch.cat([x[:, 1] for _, x, _ in batches])
    assert len(drawn.unique()) == 24
    if workers == 0:
        assert (stream.begun, stream.given) == (1, 24)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(tmp_path):
    whole = train(alrpc.as_dataset(Endless(), TEST), steps=30, evaluate_every=10)
    for stream in (Endless, Skipping):
        assert train(alrpc.as_dataset(stream(), TEST), steps=20, evaluate_every=10, out=tmp_path / stream.__name__) != whole
        assert train(alrpc.as_dataset(stream(), TEST), steps=30, resume=tmp_path / stream.__name__) == whole
    assert train(alrpc.as_dataset(Endless(), TEST), steps=30, evaluate_every=10, workers=1) == whole
    with pytest.raises(alrpc.UserError, match=r"has finished its 30 steps; for more of them add --set train\.steps=N"):
        train(alrpc.as_dataset(Endless(), TEST), resume=tmp_path / "Endless")


def test_a_run_of_fewer_steps_than_an_evaluation_has_goes_on(tmp_path):
    dataset = alrpc.as_dataset(Endless(), TEST)
    train(dataset, steps=5, out=tmp_path / "run")
    assert train(dataset, steps=10, resume=tmp_path / "run") == train(dataset, steps=10)


def test_labels_of_a_stream_are_such_as_those_to_test_on():
    def first(stream, test=TEST, **fields):
        dataset = alrpc.as_dataset(stream, test, **fields)
        return dataset, read(dataset, by_steps(1, batch_size=3))[0][2]

    class Named:
        def __init__(self, labels):
            self.labels = labels

        def __iter__(self):
            return itertools.cycle({"x": np.zeros(5), "label": label} for label in self.labels)

    inputs = TEST[0][:2]
    dataset, labels = first(Named(["dog", "cat", "dog"]), (inputs, ["cat", "dog"]))
    assert dataset.class_names == ["cat", "dog"] and labels.tolist() == [1, 0, 1]
    dataset, labels = first(Named([0.5, 1, 2]), (inputs, [0.0, 1.0]))
    assert dataset.target == alrpc.Values(1) and labels.tolist() == [0.5, 1, 2]
    dataset, labels = first(Named([7, 8, 9]), (inputs, [1, 2]), target=alrpc.Classes(10))
    assert dataset.target == alrpc.Classes(10) and labels.tolist() == [7, 8, 9]
    dataset, labels = first(Named([[0, 1], [1, 1], [0, 0]]), (inputs, [[0, 1], [1, 0]]))
    assert dataset.target == alrpc.Labels(2) and labels.tolist() == [[0, 1], [1, 1], [0, 0]]
    with pytest.raises(
        alrpc.UserError, match="train split: samples from 0 on: row 1: label '9' is none of the classes tested on"
    ):
        first(Named([1, 9, 2]), (inputs, [1, 2]))


def test_a_stream_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": TEST[0].tolist(), "label": TEST[1].tolist()})
    streamed = table.to_iterable_dataset()
    batches = read(alrpc.as_dataset(streamed, table), by_steps(3, batch_size=4))
    assert np.allclose(torch.cat([x for _, x, _ in batches]), TEST[0])
    with pytest.raises(alrpc.UserError, match="the stream ended after 12 samples, but the run needs more"):
        read(alrpc.as_dataset(streamed, table), by_steps(4, batch_size=4))


def stream_with(**fields):
    """What is wrong with a run on a stream."""
    given = {"test": TEST, "stream": Endless(), "steps": 2, **fields}
    dataset = alrpc.as_dataset(given.pop("stream"), given.pop("test"), validation=given.pop("validation", 0.0))
    train(dataset, **given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": None}, "train.steps: got null, but the training data is a stream"),
        (
            {"steps": 25, "evaluate_every": 10},
            "train.steps: got 25, which is no multiple of train.evaluate_every, 10; give 20 or 30",
        ),
        ({"stream": iter(Endless())}, "train: got generator, which gives its samples once"),
        ({"test": None}, "test: got None beside a stream; give data with a length to test on"),
        ({"test": Endless()}, "test split: got Endless; give a pair of inputs and labels"),
        ({"test": (TEST[0], TEST[1][:5])}, "test split: 12 inputs and 5 labels"),
        ({"validation": 0.1}, "validation: got 0.1, but a stream has no share to hold out"),
        ({"workers": 2}, "data.workers: got 2, but a stream is read in order"),
        ({"class_weights": "balanced"}, "the classes of a stream cannot be counted"),
        ({"stream": Endless(end=6)}, "the stream ended after 6 samples, but the run needs more"),
        ({"stream": Endless(end=0)}, "the stream ended after 0 samples"),
    ],
)
def test_what_was_wrong_is_named(fields, message):
    with pytest.raises(alrpc.UserError, match=re.escape(message)) as error:
        stream_with(**fields)
    assert "\n" not in str(error.value)


def test_a_pass_has_at_least_one_micro_batch():
    split = alrpc.Split(torch.zeros(3, 5), torch.arange(3) % 2)
    with pytest.raises(alrpc.UserError, match=r"data\.batch_size: got 4, but there are 3 samples to train on"):
        train(alrpc.Dataset(split, split, alrpc.Classes(2)), steps=2)
