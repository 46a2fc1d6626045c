"""Training by steps: of pass after pass, and of streams that need have no end."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import alrpc
from alrpc.config import load_config, parse_config
from alrpc.data import for_run
from alrpc.data.loader import epoch_size, load_micro_batches, requests

NUMBERS = np.random.default_rng(0)
TEST = NUMBERS.normal(size=(12, 5)), np.arange(12) % 3
TEST_SAMPLES = [(row.astype("f4"), int(label)) for row, label in zip(*TEST, strict=True)]


def numbers_of(position):
    return np.random.default_rng(position).normal(position % 3, size=3)


class Endless(IterableDataset):
    """Samples whose first number is their position, and whose second one is drawn from torch's generator."""

    def __init__(self, end=None):
        self.end, self.begun, self.given = end, 0, 0

    def __iter__(self):
        self.begun += 1
        for position in itertools.count():
            if position == self.end:
                return
            self.given += 1
            yield np.array([position, torch.rand(()).item(), *numbers_of(position)], dtype="f4"), position % 3


class Shuffled(Endless):
    """Draws as it begins, before it gives anything."""

    def __iter__(self):
        order = np.random.permutation(1000)
        return itertools.cycle((np.array([index, *[0] * 4], dtype="f4"), int(index) % 3) for index in order)


class Fixed(Endless):
    """Gives one iterator again and again."""

    def __iter__(self):
        return self

    def __next__(self):
        return np.zeros(5, dtype="f4"), 0


class Changing(Endless):
    """From its seventh sample on each has one number less."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def __iter__(self):
        return ((np.zeros(self.width - (position > 5), dtype="f4"), position % 3) for position in itertools.count())


class Noisy(Dataset):
    """Ten samples with noise that is drawn when they are read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return np.append(numbers_of(index), [torch.rand(()).item(), index]).astype("f4"), index % 3


def read(dataset, config):
    """The micro-batches of a run on which it trains."""
    parts = for_run(dataset, config.data, config.train)
    wanted = requests(parts, config.data.batch_size, config.train)
    loaded = load_micro_batches(parts, wanted, config.train.seed, config.data.workers)
    return [(each.epoch, each.tensors["x"], each.labels) for each in loaded if each.split == "train"]


def by_steps(steps, every=1000, **data):
    return parse_config({"train": {"steps": steps, "evaluate_every": every}, "data": data})


def train(dataset, **fields):
    torch.manual_seed(0)
    network = alrpc.associate([torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)], dataset.sample, dataset.target, target_width=4)
    alrpc.train(network, dataset, **{"batch_size": 4, "schedule": "constant", **fields})
    return network.digest()


@pytest.mark.parametrize("every", [3, 4, 12])
def test_steps_train_as_passes_do_however_often_they_are_evaluated(every):
    dataset = alrpc.as_dataset(Noisy(), TEST_SAMPLES)
    by_passes = train(dataset, epochs=4, schedule="cosine", seed=3)  # of 10 samples, 3 micro-batches a pass
    assert train(dataset, steps=12, evaluate_every=every, schedule="cosine", seed=3) == by_passes
    config = by_steps(12, every, batch_size=4)
    batches = read(dataset, config)
    assert [epoch for epoch, _, _ in batches] == [step // every for step in range(12)]
    for number in range(4):
        samples = torch.cat([x[:, 4] for _, x, _ in batches[3 * number : 3 * number + 3]]).long()
        assert samples.tolist() == dataset.train.order(config.train.seed, number, 4).tolist()
    size = epoch_size(dataset, 4, config.train, throughout=True)
    assert size == ({3: 10, 4: 14, 12: 40}[every], every, 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_read_in_order_and_no_further_than_it_is_wanted(workers):
    stream = Endless()
    batches = read(alrpc.as_dataset(stream, TEST), by_steps(6, 3, batch_size=4, workers=workers))
    assert torch.cat([x[:, 0] for _, x, _ in batches]).tolist() == [*range(24)]
    assert torch.cat([labels for _, _, labels in batches]).tolist() == [position % 3 for position in range(24)]
    drawn = torch.cat([x[:, 1] for _, x, _ in batches])
    assert len(drawn.unique()) == 24
    if workers == 0:  # once for the first sample
        assert (stream.begun, stream.given) == (2, 1 + 24)


@pytest.mark.parametrize("stream", [Endless, Shuffled])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(tmp_path, stream):
    fields = {"seed": 7, "evaluate_every": 10}
    whole = train(alrpc.as_dataset(stream(), TEST), steps=30, **fields)
    assert train(alrpc.as_dataset(stream(), TEST), steps=20, out=tmp_path / "run", **fields) != whole
    assert train(alrpc.as_dataset(stream(), TEST), steps=30, resume=tmp_path / "run") == whole
    assert train(alrpc.as_dataset(stream(), TEST), steps=30, workers=1, **fields) == whole
    assert train(alrpc.as_dataset(stream(), TEST), steps=30, **{**fields, "seed": 8}) != whole
    with pytest.raises(alrpc.UserError, match=r"has finished its 30 steps; for more of them add --set train\.steps=N"):
        train(alrpc.as_dataset(stream(), TEST), resume=tmp_path / "run")


def test_a_run_goes_on_in_the_middle_of_a_part():
    dataset, config = alrpc.as_dataset(Endless(), TEST), by_steps(6, 3, batch_size=4)
    wanted = list(requests(dataset, 4, config.train))
    assert [each.indices[0].item() for each in wanted if each.split == "train"] == [0, 4, 8, 12, 16, 20]
    for start, left in ((2, [8, 12, 16, 20]), (3, [12, 16, 20]), (5, [20])):
        rest = requests(dataset, 4, config.train, start)
        assert [each.indices[0].item() for each in rest if each.split == "train"] == left
    split = alrpc.Dataset(alrpc.Split(torch.zeros(10, 1), torch.arange(10) % 2), dataset.test, alrpc.Classes(3))
    whole = [each.indices.tolist() for each in requests(split, 4, config.train) if each.split == "train"]
    assert [each.indices.tolist() for each in requests(split, 4, config.train, 4) if each.split == "train"] == whole[4:]


def test_shares_of_a_micro_batch_are_read_by_processes_apart():
    config = parse_config({"train": {"steps": 3, "seed": 5}, "data": {"batch_size": 6}})
    ranks = [alrpc.as_dataset(Shuffled(), TEST) for _ in range(2)]
    shares = []
    for rank, dataset in enumerate(ranks):
        assert dataset.sample["x"].shape == (1, 5)
        wanted = [replace(each, indices=each.indices.tensor_split(2)[rank]) for each in requests(dataset, 6, config.train)]
        loaded = load_micro_batches(dataset, [each for each in wanted if each.split == "train"], config.train.seed)
        shares.append([each.tensors["x"] for each in loaded])
    whole = [x for _, x, _ in read(alrpc.as_dataset(Shuffled(), TEST), config)]
    for parts, x in zip(zip(*shares, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(parts), x)


def test_a_run_of_fewer_steps_than_an_evaluation_has_goes_on(tmp_path):
    dataset = alrpc.as_dataset(Endless(), TEST)
    train(dataset, steps=5, out=tmp_path / "run")
    assert train(dataset, steps=10, resume=tmp_path / "run") == train(dataset, steps=10)


def resumed(run, dataset=None, **fields):
    with pytest.raises(alrpc.UserError) as error:
        train(dataset or alrpc.as_dataset(Endless(), TEST), resume=run, **fields)
    return str(error.value)


def test_what_cannot_change_when_a_run_is_resumed(tmp_path):
    train(alrpc.as_dataset(Endless(), TEST), steps=20, evaluate_every=10, out=tmp_path / "run")
    assert "train.steps: got 5, but the run is evaluated after every 10" in resumed(tmp_path / "run", steps=5)
    assert "no multiple of train.evaluate_every, 10; give 20 or 30" in resumed(tmp_path / "run", steps=25)
    assert "train.epochs: got 5 beside train.steps, 20; give one of the two" in resumed(tmp_path / "run", epochs=5)
    passes = alrpc.as_dataset(Noisy(), TEST_SAMPLES)
    train(passes, epochs=1, out=tmp_path / "passes")
    assert "the run is one by epochs and cannot become one by steps" in resumed(tmp_path / "passes", passes, steps=9)
    samples = [(np.zeros(5, dtype="f4"), row % 3) for row in range(12)]
    train(alrpc.as_dataset(samples, TEST_SAMPLES), steps=20, evaluate_every=10, out=tmp_path / "other")
    fewer = alrpc.as_dataset(samples[:9], TEST_SAMPLES)
    assert "data: 9 samples to train on, but the run began with 12 samples" in resumed(tmp_path / "other", fewer, steps=30)
    assert "data: a stream to train on, but the run began with 12 samples" in resumed(tmp_path / "other", steps=30)
    assert "data: 9 samples to train on, but the run began with a stream" in resumed(tmp_path / "run", fewer, steps=30)


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
        ({"stream": iter(Endless())}, "train: got generator, whose iterators are one and the same"),
        ({"stream": Fixed()}, "train: got Fixed, whose iterators are one and the same"),
        ({"stream": DataLoader(Noisy())}, "train split: got DataLoader; give a pair of inputs and labels"),
        ({"test": None}, "test: got None beside a stream; give data with a length to test on"),
        ({"test": Endless()}, "test split: got Endless; give a pair of inputs and labels"),
        ({"test": (TEST[0], TEST[1][:5])}, "test split: has different numbers of rows"),
        ({"test": (TEST[0][:, :4], TEST[1])}, "test split: x: got float32 (4,), but the network takes float32 (5,)"),
        ({"test": (TEST[0].astype(int), TEST[1])}, "test split: x: got int64 (5,), but the network takes float32 (5,)"),
        (
            {"evaluate_every": 2, "steps": None, "stream": Noisy(), "test": TEST_SAMPLES},
            "train.evaluate_every: got 2 without train.steps",
        ),
        ({"epochs": 3}, "train.epochs: got 3 beside train.steps, 2; give one of the two"),
        ({"accumulate": 3, "steps": 4}, "train.accumulate: got 3, of which train.evaluate_every, 4, is no multiple"),
        ({"stream": Changing(5)}, "train split: sample 6: 'x' is torch.float32 (4,), but others are torch.float32 (5,)"),
        (
            {"test": [(np.zeros(4, dtype="f4"), 0), (np.zeros(4, dtype="f4"), 1)]},
            "test split: sample 0: 'x' is torch.float32 (4,)",
        ),
        ({"validation": 0.1}, "validation: got 0.1, but a stream has no share to hold out"),
        ({"workers": 2}, "data.workers: got 2, but a stream is read in order"),
        ({"class_weights": "balanced"}, "the classes of a stream cannot be counted"),
        ({"stream": Endless(end=6)}, "the stream ended after 6 samples, but the run needs more"),
        ({"stream": Endless(end=0)}, "train split: the stream has no samples"),
    ],
)
def test_what_was_wrong_is_named(fields, message):
    with pytest.raises(alrpc.UserError, match=re.escape(message)) as error:
        stream_with(**fields)
    assert "\n" not in str(error.value)


class Shrinking(alrpc.Split):
    def order(self, seed, epoch, batch_size):
        return torch.arange(8 - 4 * (epoch == 1))


def test_passes_of_a_sampler_of_ones_own_are_checked_before_training():
    split = Shrinking(torch.zeros(8, 5), torch.arange(8) % 2)
    dataset = alrpc.Dataset(split, split, alrpc.Classes(2))
    train(dataset, steps=2)
    with pytest.raises(alrpc.UserError, match="its order gives 1 micro-batches in epoch 2, but 2 in epoch 1"):
        train(dataset, steps=3)


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(alrpc.UserError, match=r"train\.epochs: got 3 beside train\.steps, 10; give one of the two"):
        load_config("mnist-mlp", ["train.steps=10", "train.epochs=3"])
    with pytest.raises(alrpc.UserError, match=r"train\.epochs: got 3 beside train\.steps, 10; give one of the two"):
        parse_config({"train": {"steps": 10, "epochs": 3}})
    assert load_config("mnist-mlp", ["train.steps=10"]).train.epochs == 1
