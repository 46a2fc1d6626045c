"""Data sets in files of tables: npz, parquet, and folders of Hugging Face's `datasets`; and a run on them."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import read_summary
from PIL import Image

import alrpc
from alrpc.cli.main import main
from alrpc.data.catalog import DATA
from alrpc.inference.evaluation import changed_data, evaluate
from alrpc.runtime.run import run_sequentially

NUMBERS = np.random.default_rng(0)
X, Y = NUMBERS.normal(size=(60, 5)), np.array(["no", "yes"] * 30)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refusal(**fields):
    with pytest.raises(alrpc.UserError) as error:
        alrpc.load_data(**fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def train(tmp_path, *fields):
    fields = ("train.epochs=1", "model.widths=[16]", "data.batch_size=16", f"data.root={tmp_path}", *fields)
    summary, run = run_sequentially(alrpc.load_config(None, fields), "run", tmp_path / "run", quiet=True)
    again = evaluate(alrpc.load_run(run), changed_data(run, (), None))
    assert [each[again["metric"]] for each in again["exits"]] == summary["exits"] == read_summary(run)["exits"]
    return run


def test_an_archive_has_arrays_of_both_splits_or_of_one(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9], about=np.array("flowers"))
    np.savez(tmp_path / "b.npz", x=X, z=X[:, 0], label=Y, names=np.arange(3))
    both = alrpc.load_data("npz", file=tmp_path / "a.npz", label_column="y")
    assert (len(both.train), len(both.test), both.class_names) == (60, 9, ["no", "yes"])
    one = alrpc.load_data("npz", file=tmp_path / "b.npz", columns=["z", "x"], test_share=0.1)
    assert (len(one.train), len(one.test), one.sample["x"].shape) == (54, 6, (1, 6))
    assert len(alrpc.load_data("npz", file=tmp_path / "b.npz", test_file=tmp_path / "b.npz", columns=["x"]).test) == 60


def test_a_run_on_an_archive_is_evaluated_and_predicts(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, label=Y)
    run = train(tmp_path, "data.name=npz", f"data.file={tmp_path / 'a.npz'}", "data.validation=0.1")
    np.save(tmp_path / "new.npy", X[:3])
    answered = CliRunner().invoke(main, ["predict", str(run), str(tmp_path / "new.npy"), "--csv"])
    assert answered.exit_code == 0 and len(answered.stdout.splitlines()) == 4, answered.output
    shown = CliRunner().invoke(main, ["inspect", str(run)])
    assert shown.exit_code == 0 and re.search(r"class taken for +no +yes", shown.stdout), shown.output
    assert json.loads((run / "quality.json").read_text())["classes"] == ["no", "yes"]
    np.savez(tmp_path / "other.npz", x=X[:, :3], label=Y)
    refused = CliRunner().invoke(main, ["evaluate", str(run), "--set", f"data.test_file={tmp_path / 'other.npz'}"])
    assert "other.npz: x: got float32 (3,), but the network takes float32 (5,)" in refused.stderr


def test_a_run_on_an_archive_of_several_labels_is_evaluated_predicts_and_is_exported(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, label=(X[:, :3] > 0).astype(np.uint8))
    run = train(tmp_path, "data.name=npz", f"data.file={tmp_path / 'a.npz'}", "train.metrics=[micro_f1]", "train.lr=0.01")
    assert json.loads((run / "labels.json").read_text()) == ["0", "1", "2"] and "label_accuracy" in str(read_summary(run))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    np.save(tmp_path / "new.npy", X[:30])

    def predicted(*options):
        arguments = ["predict", str(run), str(tmp_path / "new.npy"), "--labels", str(tmp_path / "names.txt"), *options]
        answered = CliRunner().invoke(main, arguments)
        assert answered.exit_code == 0, answered.output
        return answered.stdout.splitlines()

    predictor = alrpc.load_run(run)
    shares = predictor.objective.probabilities(predictor(torch.tensor(X[:30], dtype=torch.float32))).detach().numpy()
    header, *rows = (line.split(",") for line in predicted("--csv"))
    assert header == ["input", "a", "b", "c", "exit"]
    assert np.allclose([[float(each) for each in row[1:4]] for row in rows], shares, atol=1e-5)
    for line, of_sample in zip(predicted("--top-k", "2"), shares, strict=True):
        answer = json.loads(line)
        assert {each["label"] for each in answer["labels"]} == {
            name for name, share in zip("abc", of_sample, strict=True) if share > 0.5
        }
        assert [each["label"] for each in answer["top"]] == ["abc"[place] for place in (-of_sample).argsort()[:2]]
    for form in ("safetensors", "torch"):
        exported = CliRunner().invoke(main, ["export", str(run), "--to", form, "--out", str(tmp_path / form)])
        assert exported.exit_code == 0, exported.output
    card = (tmp_path / "torch" / "README.md").read_text()
    assert "which learned 3 labels" in card and "The probabilities rank the labels" in card
    assert "the run's target is Labels(count=3)" in CliRunner().invoke(main, ["calibrate", str(run)]).stderr


def test_a_run_on_a_table_of_images_is_evaluated_and_predicts(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (9, 9), (200 * (row % 2), row, 0)) for row in range(40)]
    table = datasets.Dataset.from_dict({"picture": images, "kind": [("dark", "red")[row % 2] for row in range(40)]})
    table.to_parquet(tmp_path / "a.parquet")
    fields = (f"data.file={tmp_path / 'a.parquet'}", "data.label_column=kind", "data.image_size=8", "data.augmentation=basic")
    run = train(tmp_path, "data.name=parquet", *fields)
    images[0].save(tmp_path / "dark.png")
    (answer,) = alrpc.load_run(run).answers([tmp_path / "dark.png"])
    assert answer.label in ("dark", "red")


def test_a_run_on_a_folder_of_texts_is_evaluated_with_its_vocabulary(tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("tokenizers")
    texts = [f"film number{row} was {('awful', 'lovely')[row % 2]}" for row in range(40)]
    made = datasets.Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(40)]})
    made = made.cast_column("label", datasets.ClassLabel(names=["pos", "neg"]))
    datasets.DatasetDict(train=made, dev=made.select(range(10))).save_to_disk(tmp_path / "reviews")
    fields = (
        "model.name=lstm",
        "model.width=8",
        "model.hidden=8",
        f"data.name=hf:{tmp_path / 'reviews'}",
        "data.test_split=dev",
    )
    summary, run = run_sequentially(alrpc.load_config(None, [*fields, "train.epochs=1"]), "run", tmp_path / "run", quiet=True)
    assert summary["samples"] == 40 and summary["test_samples"] == 10
    other = evaluate(alrpc.load_run(run), changed_data(run, ("data.test_split=train",), None))
    assert other["samples"] == 40 and alrpc.load_run(run).carried.classes == ["pos", "neg"]
    assert "has no split 'exam'; use one of: train, dev" in refusal(name=f"hf:{tmp_path / 'reviews'}", test_split="exam")


def test_texts_have_several_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("tokenizers")
    told = [[row % 2, 1, int(row % 5 == 0)] for row in range(40)]
    texts = [" ".join(word for word, has in zip(("lovely", "film", "long"), row, strict=True) if has) for row in told]
    datasets.Dataset.from_dict({"text": texts, "label": told}).to_parquet(tmp_path / "a.parquet")
    for _ in range(2):  # as read, and from the cache
        dataset = alrpc.load_data("parquet", file=tmp_path / "a.parquet", root=tmp_path, test_file=tmp_path / "a.parquet")
        assert dataset.target == alrpc.Labels(3) and dataset.class_names == ["0", "1", "2"]
        assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == told
        assert dataset.train.batch(torch.tensor([5, 8]))[1].tolist() == [told[5], told[8]]


def test_mistakes_are_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "objects.npz", x=np.array([[1], [2, 3]], dtype=object), label=Y)
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04nothing")
    assert "a.npz: no column 'label'; set data.label_column to one of: x, y" in refusal(name="npz", file=tmp_path / "a.npz")
    assert "no column 'z'; set data.columns to one of: x, y" in refusal(name="npz", file=tmp_path / "a.npz", columns=["z"])
    assert "objects.npz: not a readable archive of arrays: it has Python objects" in refusal(
        name="npz", file=tmp_path / "objects.npz"
    )
    assert "damaged.npz: not a readable archive of arrays" in refusal(name="npz", file=tmp_path / "damaged.npz")
    assert "data.file: not given, but needed by npz; give a file that ends in .npz" in refusal(name="npz")
    pytest.importorskip("datasets")
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    assert "a.parquet: not a readable parquet file" in refusal(name="parquet", file=tmp_path / "a.parquet")
    assert "reads no file; set data.name to text-file, npz or parquet" in refusal(name="hf:./nowhere", file=tmp_path / "a.npz")
    assert "data.name: got hf:; give a folder" in refusal(name="hf:")
    assert "hf:./nowhere is neither on this machine nor to be had" in refusal(name="hf:./nowhere")


def test_they_are_listed():
    assert {"npz", "parquet", "hf:NAME"} <= DATA.keys()
