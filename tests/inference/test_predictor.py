"""A run predicts raw examples by what lies in its directory alone, as its own evaluation did, sample by sample."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import small_data
import torch
from PIL import Image

import alrpc
from alrpc.checkpoint.carried import write_carried
from alrpc.config import load_config
from alrpc.data.preprocessing import ArrayPreprocessing, ImagePreprocessing
from alrpc.inference.predict import predict
from alrpc.inference.sources import Example
from alrpc.objectives import OBJECTIVES
from alrpc.runtime.run import run_sequentially

SMALL = ("train.epochs=1", "model.widths=[32, 32]")
IMAGES = ("data.name=image-folder", "data.image_size=16", "data.batch_size=8", *SMALL)
TEXTS = ("model.name=lstm", "model.width=8", "model.hidden=8", "data.name=text-file", "data.batch_size=16", "train.epochs=1")


def train(out: Path, *fields: str) -> tuple[dict, alrpc.Predictor]:
    summary, run = run_sequentially(load_config(None, fields), "run", out, quiet=True)
    return summary, alrpc.load_run(run)


def is_correct(answers: list[alrpc.Answer], labels: torch.Tensor, names: list[str]) -> float:
    return sum(answer.label == names[label] for answer, label in zip(answers, labels.tolist(), strict=True)) / len(answers)


def first_line(call, kind: type[Exception] = alrpc.UserError) -> str:
    with pytest.raises(kind) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_answers_of_every_exit_of_every_objective_are_those_of_the_evaluation(tmp_path, objective):
    summary, run = train(tmp_path / "run", f"objective.name={objective}", *SMALL)
    test = alrpc.load_data("digits").test
    for exit, accuracy in enumerate(summary["exits"], 1):
        answers = list(run.answers(test.inputs, exit=exit, top_k=99))
        assert [int(answer.label) for answer in answers] == run.predict(test.inputs, exit=exit).tolist()
        assert is_correct(answers, test.labels, [str(digit) for digit in range(10)]) == accuracy
        for answer in answers:
            shares = [share for _, share in answer.top]
            assert answer.exit == exit and len({name for name, _ in answer.top}) == 10
            assert shares == sorted(shares, reverse=True) and min(shares) >= 0 and sum(shares) == pytest.approx(1)
    assert "--exit: got 3, but the network has exits 1 to 2" in first_line(lambda: list(run.answers(test.inputs, exit=3)))


def test_a_loss_of_ones_own_is_not_imported_to_predict(tmp_path):
    train(tmp_path / "run", "objective.name=classifier", "objective.loss=own_recipe:hinge", *SMALL)
    del sys.modules["own_recipe"]
    answers = list(alrpc.load_run(tmp_path / "run").answers(alrpc.load_data("digits").test.inputs[:2]))
    assert len(answers) == 2 and "own_recipe" not in sys.modules


def test_image_files_are_predicted_without_the_data_of_the_training(tmp_path):
    root = small_data.write_images(tmp_path / "data")
    summary, _ = train(tmp_path / "there", f"data.root={root}", *IMAGES)
    files = sorted((root / "test").glob("*/*"))
    shutil.move(root, tmp_path / "moved")
    shutil.move(tmp_path / "there", tmp_path / "here")
    run = alrpc.load_run(tmp_path / "here")
    files = [tmp_path / "moved" / file.relative_to(root) for file in files]
    answers = list(run.answers(files))
    assert sum(answer.label == file.parent.name for answer, file in zip(answers, files, strict=True)) == round(
        summary["test_accuracy"] * len(files)
    )
    opened = [Image.open(file) for file in files]
    pixels = [numpy.asarray(image) for image in opened]
    assert list(run.answers(opened)) == list(run.answers(pixels)) == answers
    assert list(run.answers([image.transpose(2, 0, 1) for image in pixels])) == answers
    (tmp_path / "text.png").write_text("no image")
    assert "example 1: " in (line := first_line(lambda: list(run.answers([opened[0], tmp_path / "text.png"])))), line
    assert "not a readable image" in line


def test_texts_are_predicted_without_file_and_cache(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = small_data.write_texts(tmp_path / "texts.jsonl")
    summary, _ = train(tmp_path / "there", f"data.file={file}", *TEXTS)
    test = alrpc.load_data("text-file", file=file).test
    records = [json.loads(line) for line in file.read_text().splitlines()]
    from sklearn.model_selection import train_test_split  # as the data set has split them

    _, tested = train_test_split(records, test_size=0.2, stratify=[each["label"] for each in records], random_state=0)
    file.unlink()
    shutil.rmtree(tmp_path / "cache")
    run = alrpc.load_run(shutil.move(tmp_path / "there", tmp_path / "here"))
    for exit, accuracy in enumerate(summary["exits"], 1):
        answers = list(run.answers((each["text"] for each in tested), exit=exit))
        assert is_correct(answers, test.labels, ["bad", "good"]) == accuracy
    assert first_line(lambda: list(run.answers(["fine", " "]))) == "example 1: got an empty text; give a text"


def test_ones_own_data_names_its_classes_and_takes_arrays_of_the_samples_shape(tmp_path):
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 6), torch.arange(40) % 2)
    dataset = alrpc.Dataset(split, split, alrpc.Classes(2), classes=["even", "odd"])
    network = alrpc.associate([torch.nn.Linear(6, 8)], dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    run = alrpc.load_run(tmp_path / "run", network=network)
    answers = list(run.answers(split.inputs.tolist()))
    assert [("even", "odd")[label] for label in network.predict(split.inputs)] == [answer.label for answer in answers]
    assert first_line(lambda: list(run.answers([[1.0, 2.0]]))) == (
        "example 0: got (2,); give float32 (6,), or as many numbers in a row"
    )
    assert "has nan or inf" in first_line(lambda: list(run.answers([[float("nan")] * 6])))
    assert "got what is no array of numbers" in first_line(lambda: list(run.answers([["a"] * 6])))
    for wrong in (["even"], ["even", "even"], "ab", [1, 2]):
        assert "give 2 different names" in first_line(
            lambda wrong=wrong: alrpc.Dataset(split, split, alrpc.Classes(2), classes=wrong)
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "preprocessing: gives x float32 (3, 4, 4); a sample of the data set has x float32 (6)"),
        ({"mean": (0.5,)}, "preprocessing: got 1 means and 3 deviations for 3 channels; give one of each for a channel"),
        ({"height": 0}, "preprocessing: images.height: got 0; it should be greater than or equal to 1"),
    ],
)
def test_a_preprocessing_that_does_not_make_the_samples_is_refused_as_the_run_begins(tmp_path, fields, message):
    split = alrpc.Split(torch.randn(40, 6), torch.arange(40) % 2)
    colours = {"channels": 3, "height": 4, "width": 4, "mean": (0.5,) * 3, "deviation": (0.2,) * 3, **fields}

    def begin() -> None:
        dataset = alrpc.Dataset(split, split, alrpc.Classes(2), preprocessing=ImagePreprocessing(**colours))
        network = alrpc.associate([torch.nn.Linear(6, 8)], dataset.sample, dataset.target)
        alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")

    assert first_line(begin) == message


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("uint8", [300, 0]),
        ("uint8", [-1, 0]),
        ("int8", numpy.array([200, 0], numpy.uint8)),
        ("int64", [1e30, 0]),
        ("int64", [0.5, 0]),
        ("int64", torch.tensor([float("nan"), 0])),
        ("int64", numpy.array([2**63, 0], numpy.uint64)),
        ("bool", [2, 0]),
    ],
)
def test_a_number_that_the_type_does_not_have_is_refused(dtype, numbers):
    prepare = ArrayPreprocessing({"x": (dtype, (2,))}).prepare
    assert f"with a number that {dtype} does not have; give {dtype} (2,)" in first_line(lambda: prepare(numbers))
    for fitting in ([1, 0], [1.0, 0.0], torch.tensor([1, 0], dtype=torch.bfloat16), [True, False]):
        assert prepare(fitting)["x"].tolist() == [1, 0]


def test_what_the_network_cannot_compute_is_one_line(tmp_path):
    split = alrpc.Split(torch.arange(40).view(20, 2) % 4, torch.arange(20) % 2)
    dataset = alrpc.Dataset(split, split, alrpc.Classes(2))
    blocks = [torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Flatten())]
    network = alrpc.associate(blocks, dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    run = alrpc.load_run(tmp_path / "run", network=network)
    assert first_line(lambda: list(run.answers([[0, 1], [2, 9]]))) == (
        "the network cannot compute these inputs: IndexError: index out of range in self"
    )
    examples = [Example(name, lambda row=row: row) for name, row in (("a", [0, 1]), ("b", [2, 9]))]
    assert first_line(lambda: list(predict(run, examples))).startswith("b: the network cannot compute")


def test_names_of_classes_may_have_bytes_that_are_not_utf8(tmp_path):
    split, names = alrpc.Split(torch.randn(40, 6), torch.arange(40) % 2), ["a\udcff", 'é"\\']
    dataset = alrpc.Dataset(split, split, alrpc.Classes(2), classes=names)
    network = alrpc.associate([torch.nn.Linear(6, 8)], dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    assert alrpc.load_run(tmp_path / "run", network=network).carried.classes == names
    (tmp_path / "names.json").write_text('["a", ')
    given = alrpc.load_run(tmp_path / "run", network=network, labels=tmp_path / "names.json")
    assert f"{tmp_path / 'names.json'}: is damaged: " in first_line(lambda: given.carried)


def test_a_run_does_not_go_on_with_other_classes_or_preprocessing_than_it_began_with(tmp_path):
    split = alrpc.Split(torch.randn(20, 1, 4, 4), torch.arange(20) % 2)
    listed = ImagePreprocessing(1, 4, 4, [0.5], [0.2])
    assert listed == ImagePreprocessing(1, 4, 4, (0.5,), (0.2,))
    assert ArrayPreprocessing({"x": ["float32", [6]]}) == ArrayPreprocessing({"x": ("float32", (6,))})
    files = write_carried(tmp_path, begun := alrpc.Dataset(split, split, alrpc.Classes(2), preprocessing=listed))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert write_carried(tmp_path, begun, resuming=True) == files
    for name, changed in (
        ("labels.json", {"classes": ["a", "b"]}),
        ("preprocess.json", {"preprocessing": ImagePreprocessing(1, 4, 4, (0.5,), (0.3,))}),
    ):
        other = dataclasses.replace(begun, **changed)
        line = first_line(lambda other=other: write_carried(tmp_path, other, resuming=True))
        assert line.startswith(f"{tmp_path / name}: is not what the data give; restore the file, or give")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "labels.json").unlink()
    assert write_carried(tmp_path, begun, resuming=True) == files and (tmp_path / "labels.json").exists()


def test_a_regression_answers_with_values(tmp_path):
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 6), torch.randn(40, 2))
    dataset = alrpc.Dataset(split, split, alrpc.Values(2))
    network = alrpc.associate([torch.nn.Linear(6, 8)], dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "labels.json").exists()
    (answer,) = alrpc.load_run(tmp_path / "run", network=network).answers(split.inputs[:1])
    assert answer.values == pytest.approx(network.predict(split.inputs[:1])[0].tolist()) and answer.label is None


def test_a_damaged_file_is_refused_by_its_name(run):
    (run / "preprocess.json").write_text("{}")
    assert f"{run / 'preprocess.json'}: has 2 bytes" in first_line(lambda: list(alrpc.load_run(run).answers([])))
    (run / "labels.json").unlink()
    assert f"{run / 'labels.json'}: cannot be read" in first_line(lambda: list(alrpc.load_run(run).answers([])))


def make_old(run: Path) -> None:
    """Take away what a run of 0.1 does not have."""
    for path in (run / name for name in ("labels.json", "preprocess.json", "tokenizer.json")):
        path.unlink(missing_ok=True)
    for path in run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["carried"]
        path.write_text(json.dumps(manifest))


def test_a_run_of_0_1_says_what_it_lacks_and_takes_that_from_files(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = small_data.write_texts(tmp_path / "texts.jsonl")
    _, run = train(tmp_path / "run", f"data.file={file}", *TEXTS)
    texts = ["lovely bright film", "dark bitter"]
    answers = list(run.answers(texts))
    tokenizer, labels = tmp_path / "tokenizer.json", tmp_path / "labels.txt"
    shutil.copy(tmp_path / "run" / "tokenizer.json", tokenizer)
    make_old(tmp_path / "run")
    assert first_line(lambda: list(alrpc.load_run(tmp_path / "run").answers(texts))) == (
        f"--labels: not given, but {tmp_path / 'run'} was trained before runs had labels.json and tokenizer.json; "
        "give --labels FILE and --tokenizer FILE"
    )
    labels.write_text("bad\ngood\n")
    assert list(alrpc.load_run(tmp_path / "run", labels=labels, tokenizer=tokenizer).answers(texts)) == answers
    labels.write_text("bad\n")
    old = alrpc.load_run(tmp_path / "run", labels=labels, tokenizer=tokenizer)
    assert first_line(lambda: list(old.answers(texts))) == f"{labels}: has 1 different names; the run has 2 classes"
    assert "not a tokenizer" in first_line(
        lambda: list(alrpc.load_run(tmp_path / "run", labels=labels, tokenizer=labels).answers(texts))
    )


def test_a_run_of_0_1_on_images_needs_only_the_names_of_its_classes(run, tmp_path):
    inputs = alrpc.load_data("digits").test.inputs
    answers = list(alrpc.load_run(run).answers(inputs))
    shutil.copy(run / "labels.json", tmp_path / "names.json")
    make_old(run)
    assert "give --labels FILE" in first_line(lambda: list(alrpc.load_run(run).answers(inputs)))
    assert list(alrpc.load_run(run, labels=tmp_path / "names.json").answers(inputs)) == answers
