"""`alrpc.as_dataset`: arrays, map-style data sets of torch and data sets of Hugging Face as a run's data."""

import importlib.util
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import alrpc
from alrpc.data.loader import Request, read

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
NUMBERS = np.random.default_rng(0)
INPUTS, LABELS = NUMBERS.normal(size=(40, 5)), NUMBERS.integers(0, 3, 40)
SEVERAL = np.stack([INPUTS[:, 0] > -9, INPUTS[:, 1] > 0, INPUTS[:, 2] > 0], axis=1).astype(int)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refusal(*arguments, **fields):
    with pytest.raises(alrpc.UserError) as error:
        alrpc.as_dataset(*arguments, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


class Noisy(Dataset):
    """Draws from every generator that a transform may draw from."""

    classes = ("a", "b", "c")

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        self.read.append(index)
        return INPUTS[index] + np.random.rand() + random.random() + torch.rand(()).item(), int(LABELS[index])


class Listed(Noisy):
    targets = LABELS.tolist()


def batch(dataset, indices, epoch=0):
    return read(dataset, 7, Request("train", epoch, torch.tensor(indices)))


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(examples) == 5
    exec("\n".join(examples), {})  # each goes on from the one before


def test_arrays_are_trained_on_as_tensors_are():
    labels = torch.tensor(LABELS)
    made = alrpc.as_dataset((INPUTS, LABELS), (INPUTS[:8], LABELS[:8]))
    known = alrpc.Dataset(
        alrpc.Split(torch.tensor(INPUTS).float(), labels),
        alrpc.Split(torch.tensor(INPUTS[:8]).float(), labels[:8]),
        made.target,
    )
    digests = []
    for dataset in (made, known):
        torch.manual_seed(0)
        network = alrpc.associate([torch.nn.Linear(5, 4)], dataset.sample, dataset.target, target_width=4)
        alrpc.train(network, dataset, epochs=2, batch_size=8)
        digests.append(network.digest())
    assert digests[0] == digests[1] and made.target == alrpc.Classes(3)


def test_rows_of_zeros_and_ones_are_several_labels():
    for labels in (SEVERAL, SEVERAL.astype(bool), torch.tensor(SEVERAL)):
        made = alrpc.as_dataset((INPUTS, labels), (INPUTS, labels), classes=["a", "b", "c"])
        assert made.target == alrpc.Labels(3) and made.class_names == ["a", "b", "c"]
        assert made.test.labels.tolist() == SEVERAL.tolist()
    floats = SEVERAL.astype(np.float32)
    assert alrpc.as_dataset((INPUTS, floats)).target == alrpc.Values(3)
    assert alrpc.as_dataset((INPUTS, floats), target=alrpc.Labels(3)).train.labels.shape == (32, 3)
    assert "row 0 has 0.5 at 0" in refusal((INPUTS, floats / 2), target=alrpc.Labels(3))
    samples = [(INPUTS[row], SEVERAL[row]) for row in range(40)]
    held = alrpc.as_dataset(samples, validation=0.25)
    assert held.target == alrpc.Labels(3) and (len(held.train), len(held.validation), len(held.test)) == (24, 8, 8)
    assert held.train.batch(torch.tensor([1, 0]))[1].tolist() == held.train.labels[[1, 0]].tolist()
    assert "target: got Labels(count=3), but the labels are those of Classes(count=3)" in refusal(
        (INPUTS, LABELS), target=alrpc.Labels(3)
    )
    assert "is int64 (40, 3); for Labels(count=4) it is 0 and 1, (N, 4)" in refusal((INPUTS, SEVERAL), target=alrpc.Labels(4))


def test_the_weights_of_a_target_are_kept():
    samples = [(INPUTS[row], LABELS[row]) for row in range(40)]
    for given in ((INPUTS, LABELS), samples):
        held = alrpc.as_dataset(given, target=alrpc.Classes(3, (1, 2, 4)), validation=0.25)
        assert held.target.weights == (1.0, 2.0, 4.0)


def test_what_labels_and_inputs_become():
    held = alrpc.as_dataset((INPUTS, np.array(["x", "y"] * 20)))
    assert (held.class_names, len(held.train), len(held.test)) == (["x", "y"], 32, 8)
    assert held.test.labels.bincount().tolist() == [4, 4]
    again = alrpc.as_dataset((INPUTS, np.array(["x", "y"] * 20)), seed=3)
    assert torch.equal(held.test.inputs, again.test.inputs)  # whatever the seed
    assert alrpc.as_dataset((INPUTS, [7, 10] * 20)).class_names == ["7", "10"]
    assert alrpc.as_dataset((INPUTS, [7, 8] * 20), target=alrpc.Classes(9)).train.labels.unique().tolist() == [7, 8]
    assert alrpc.as_dataset((INPUTS, [7, 8] * 20), target=alrpc.Values(1)).train.labels.dtype == torch.float32
    assert alrpc.as_dataset((INPUTS, INPUTS[:, :2])).target == alrpc.Values(2)
    assert alrpc.as_dataset(TensorDataset(torch.tensor(INPUTS), torch.tensor(LABELS))).train.inputs.dtype == torch.float32
    tokens = alrpc.as_dataset((NUMBERS.integers(0, 9, (40, 6)), LABELS))
    assert tokens.sample["x"].dtype == torch.int64
    pixels = alrpc.as_dataset((np.full((40, 8, 9, 3), 51, np.uint8), LABELS), augmentation="basic")
    assert pixels.test.batch(torch.tensor([0]))[0]["x"].unique().tolist() == [pytest.approx(0.2)]
    assert pixels.sample["x"].shape == (1, 3, 8, 9) and pixels.preprocessing.prepare(np.zeros((8, 9, 3), np.uint8)).shape == (
        3,
        8,
        9,
    )


def test_samples_are_read_when_they_are_wanted_with_random_numbers_of_their_own():
    dataset = alrpc.as_dataset(Noisy(), Subset(Noisy(), range(9)), validation=0.2)
    assert (dataset.class_names, len(dataset.validation), len(dataset.test)) == (["a", "b", "c"], 8, 9)
    torch.manual_seed(3)
    first, second = batch(dataset, [1, 5]), batch(dataset, [5, 2, 1])
    assert torch.equal(first.tensors["x"][1], second.tensors["x"][0]) and first.tensors["x"].dtype == torch.float32
    assert torch.equal(first.labels, second.labels[[2, 0]])
    assert not torch.equal(first.tensors["x"], batch(dataset, [1, 5], epoch=1).tensors["x"])
    drawn = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    batch(dataset, [0])
    assert torch.equal(torch.rand(1), expected) and drawn[1:] != (np.random.rand(), random.random())


def test_known_targets_spare_the_reading_of_all_samples():
    given = Listed()
    dataset = alrpc.as_dataset(Subset(given, range(10, 40)), Listed())
    assert set(given.read) == {10} and torch.equal(dataset.train.labels, torch.tensor(LABELS[10:]))
    given.targets = [LABELS[0], *(2 - LABELS[1:])]
    wrong = alrpc.as_dataset(given, Listed())
    with pytest.raises(alrpc.UserError, match=r"train split: sample \d+: has the label \d, but was said to have \d"):
        batch(wrong, list(range(40)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([(INPUTS, LABELS[:3])], "train split: has different numbers of rows, or none: x 40, label 3"),
        ([([[1], [2, 3]], [0, 1])], "train split: inputs: are ragged, or no numbers; make all rows of one shape"),
        ([(np.array([[1], [2, 3]] * 9, object), [0, 1] * 9)], "train split: column 'x' is ragged"),
        (
            [(INPUTS, np.zeros((40, 3, 1), int))],
            "column 'label' is int64 (40, 3, 1); give one class a row, or floats, or labels",
        ),
        ([(INPUTS, np.zeros((40, 3), int))], "column 'label': no row has any of its labels; at least one must occur"),
        ([(INPUTS, SEVERAL * 2)], "column 'label': row 0 has 2 at 0; each of several labels is 0 or 1"),
        (
            [(INPUTS, SEVERAL), (INPUTS, SEVERAL[:, :2])],
            "test split: column 'label' is int64 (40, 2); for Labels(count=3) it is",
        ),
        ([(INPUTS, ["a"] * 40)], "every label is 'a'; there must be two or more"),
        ([(INPUTS * np.nan, LABELS)], "train split: input 0 has nan or inf"),
        ([(INPUTS, LABELS), (INPUTS, LABELS + 1)], "test split: row"),
        ([(INPUTS, LABELS), Noisy()], "train, test, validation: got arrays or columns, and map-style data sets"),
        ([[(1, 2, 3)]], "train split: sample 0: is tuple; it must be a pair of input and label"),
        ([[(Image.new("L", (2, 2)), 0), (1, 1)] * 9], "is an image of Pillow's; give a transform that makes a tensor"),
        ([[(["a"], 0), (1, 1)] * 9], "'x' is list, no numbers"),
        ([{"rest": (INPUTS, LABELS)}], "train_split: no split 'train'; use one of: rest"),
    ],
)
def test_what_no_data_set_is_made_of(arguments, message):
    with pytest.raises(alrpc.UserError) as error:
        batch(alrpc.as_dataset(*arguments), [0])
    assert message in str(error.value)


class Aimed(Listed):
    def __init__(self, targets):
        super().__init__()
        self.targets = targets


@pytest.mark.parametrize("targets", [{0: 1}, dict.fromkeys(range(40), 1), [[1], [2, 3]] * 20, 5, "abc", [1]])
def test_targets_that_are_no_labels_of_all_samples_are_not_taken(targets):
    made = alrpc.as_dataset(Aimed(targets), Subset(Aimed(targets), range(9)))
    assert torch.equal(made.train.labels, torch.tensor(LABELS)) and len(made.test) == 9


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (
            [(INPUTS, LABELS)],
            {"target": alrpc.Classes(5), "classes": ["a", "b", "c"]},
            "target: got Classes(count=5) beside 3 names",
        ),
        ([(INPUTS, LABELS)], {"target": alrpc.Values(1), "classes": ["a", "b", "c"]}, "target: got Values(width=1) beside 3"),
        (
            [(INPUTS, INPUTS[:, :2])],
            {"target": alrpc.Values(3)},
            "target: got Values(width=3), but the labels are those of Values",
        ),
        (
            [(INPUTS, ["a", "b"] * 20)],
            {"target": alrpc.Values(1)},
            "target: got Values(width=1), but the labels are those of Classes",
        ),
        ([Noisy()], {"target": alrpc.Values(2)}, "target: got Values(width=2), but the labels are those of Values(width=1)"),
        (
            [(INPUTS, np.full((40, 2), 5))],
            {"target": alrpc.Classes(2)},
            "column 'label': row 0 has 5 at 0; each of several labels is 0 or 1, and a class one a row",
        ),
        (
            [(INPUTS, SEVERAL[:, :, None])],
            {"target": alrpc.Labels(3)},
            "column 'label' is int64 (40, 3, 1); give one class a row",
        ),
        ([(INPUTS, SEVERAL[:, :, None])], {"classes": ["a", "b", "c"]}, "column 'label' is int64 (40, 3, 1); give one class"),
        (
            [(INPUTS, SEVERAL)],
            {"target": alrpc.Classes(3)},
            "target: got Classes(count=3), but the labels are those of Labels(count=3)",
        ),
        ([(INPUTS, LABELS)], {"classes": 3}, "classes: got 3; give a list of their names"),
        ([(INPUTS, LABELS)], {"classes": "abc"}, "classes: got 'abc'; give a list of their names"),
        ([(INPUTS, LABELS)], {"classes": [1, 2, 3]}, "classes: got [1, 2, 3]; give a list of their names"),
        ([(INPUTS, LABELS)], {"seed": "a"}, "train.seed: got 'a'"),
        ([None], {}, "train split: got NoneType; give a pair of inputs and labels"),
        ([{"train": None}], {}, "train split: got NoneType; give a pair of inputs and labels"),
        ([(None, LABELS)], {}, "train split: inputs: got NoneType; give an array, a tensor or a list"),
        ([(3.0, LABELS)], {}, "train split: inputs: got float; give an array"),
        ([({"a": INPUTS}, LABELS)], {}, "train split: inputs: got dict; give an array"),
        ([(INPUTS, None)], {}, "train split: labels: got NoneType; give an array"),
        ([[(INPUTS[0], [[1], [2, 3]])] * 9], {}, "train split: sample 0: its label is ragged, or no number: [[1], [2, 3]]"),
        (
            [Subset(Listed(), [1, 99])],
            {},
            "train split: its Subset has the index 99, but the data set has 40 samples; give 0 to 39",
        ),
        (
            [Subset(Subset(Noisy(), [1, 50]), [0])],
            {},
            "train split: its Subset has the index 50, but the data set has 40 samples",
        ),
        (
            [[(row[:4], index % 2) for index, row in enumerate(INPUTS)], [(INPUTS[0], 1)]],
            {},
            "test split: sample 0: 'x' is torch.float32 (5,), but others are torch.float32 (4,); make them alike",
        ),
        ([Subset(Noisy(), [0.5])], {}, "train split: its Subset has the index 0.5"),
        ([(np.full((40, 2), 1 << 63, "u8"), LABELS)], {}, "train split: column 'x' has 9223372036854775808, which is no int64"),
    ],
)
def test_what_was_wrong_is_named(arguments, fields, message):
    assert message in refusal(*arguments, **fields)


def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"f": INPUTS.tolist(), "n": list(range(40)), "t": ["hello you"] * 40, "label": LABELS})
    assert "has f (numbers), n (numbers), t (texts); set data.columns to one column" in refusal(table)
    both = alrpc.as_dataset(datasets.DatasetDict(train=table, test=table), columns=["f", "n"])
    assert both.sample["x"].shape == (1, 6) and len(both.train) == len(both.test) == 40
    transformed = table.with_transform(lambda rows: {"x": [np.array(row) for row in rows["f"]], "label": rows["label"]})
    lazily = alrpc.as_dataset(transformed, transformed)
    assert np.allclose(batch(lazily, [3]).tensors["x"], INPUTS[3])
    images = [Image.new("RGB", (8 + row, 8), (row, 0, 0)) for row in range(30)]
    of_images = datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(30)]})
    of_images = of_images.cast_column("label", datasets.ClassLabel(names=["odd", "even"]))
    dataset = alrpc.as_dataset(of_images, image_size=16)
    assert dataset.sample["x"].shape == (1, 3, 16, 16) and dataset.class_names == ["odd", "even"]
    held = dataset.test.inputs.indices[0]
    assert torch.equal(dataset.test.batch(torch.tensor([0]))[0]["x"][0], dataset.preprocessing.prepare(images[held]))
    elsewhere = pickle.loads(pickle.dumps(dataset.train))  # as a process that reads ahead has it
    assert torch.equal(elsewhere.batch(torch.tensor([3]))[0]["x"], dataset.train.batch(torch.tensor([3]))[0]["x"])
    if importlib.util.find_spec("tokenizers"):
        assert alrpc.as_dataset(table, columns=["t"]).sample["x"].tolist() == [[2]]


def test_a_number_is_never_the_name_of_a_class():
    inputs, labels = np.zeros((30, 4), dtype="f4"), np.arange(30) % 3
    with pytest.raises(alrpc.UserError, match=r"label 'index 2' is none of the classes"):
        alrpc.as_dataset((inputs, labels), (inputs, labels), classes=["1", "2"])


def test_names_in_an_array_of_objects_are_names():
    inputs, names = np.zeros((30, 4), dtype="f4"), np.array(["a", "b"], dtype=object)[np.arange(30) % 2]
    assert alrpc.as_dataset((inputs, names)).class_names == ["a", "b"]
