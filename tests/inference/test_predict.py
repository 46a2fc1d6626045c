"""`alrpc predict`: every kind of source, in order, in bounded memory; what is bad is told by its place."""

import csv
import errno
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy
import own_blocks
import pytest
import small_data
import torch
from click.testing import CliRunner, Result
from conftest import ALRPC

import alrpc
from alrpc.cli.main import main
from alrpc.config import load_config
from alrpc.inference.pipelined import answer_in_stages
from alrpc.inference.predict import predict
from alrpc.inference.predictor import Predictor
from alrpc.inference.sources import Example, read_examples
from alrpc.runtime.run import run_sequentially

TEXTS = [f"{word} film, {word} cast" for word in ("lovely", "awful", "bright", "dark", "sweet", "bitter")]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("texts")
    file = small_data.write_texts(folder / "texts.jsonl")
    fields = (
        "model.name=lstm",
        "model.width=8",
        "model.hidden=8",
        "data.name=text-file",
        f"data.file={file}",
        "train.epochs=1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return run_sequentially(load_config(None, fields), "run", folder / "run", quiet=True)[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on images, run/, and of the images, data/."""
    folder = tmp_path_factory.mktemp("images")
    small_data.write_images(folder / "data")
    fields = (
        "data.name=image-folder",
        f"data.root={folder / 'data'}",
        "data.image_size=16",
        "model.widths=[16]",
        "train.epochs=1",
    )
    run_sequentially(load_config(None, fields), "run", folder / "run", quiet=True)
    return folder


def ask(*arguments: str | Path, given: str | bytes = "") -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], input=given)


def answers(*arguments: str | Path, given: str | bytes = "") -> list[dict]:
    done = ask(*arguments, given=given)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_texts_come_from_lines_csv_and_json_lines_alike(texts, tmp_path):
    expected = [(each.label, each.exit) for each in alrpc.load_run(texts).answers(TEXTS)]
    (tmp_path / "a.txt").write_text("\ufeff" + "\n".join(TEXTS) + "\n\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("n", "review"), *((1, text) for text in TEXTS)])
    found = [
        answers(texts, tmp_path / "a.txt"),
        answers(texts, "-", given="\n".join(TEXTS)),
        answers(texts, tmp_path / "b.jsonl", "--batch-size", "4"),
        answers(texts, tmp_path / "c.csv", "--column", "review"),
        answers(texts, "-", "--format", "jsonl", "--column", "text", given=(tmp_path / "b.jsonl").read_text()),
    ]
    for each in found:
        assert [(answer["label"], answer["exit"]) for answer in each] == expected
    assert [answer["input"] for answer in found[0]] == [f"{tmp_path / 'a.txt'}:{line}" for line in range(1, 7)]
    assert [answer["input"] for answer in found[3]] == [f"{tmp_path / 'c.csv'}:{line}" for line in range(2, 8)]
    assert set(found[0][0]) == {"input", "label", "probability", "exit"}


def test_images_come_from_folders_files_and_lists(images, tmp_path):
    folder = images / "data" / "test"
    files = sorted(map(str, folder.rglob("*.png")))
    of_folder = answers(images / "run", folder, "--top-k", "2")
    assert [answer["input"] for answer in of_folder] == files
    assert {each["label"] for each in of_folder[0]["top"]} == {"bottom", "top"}
    listed = tmp_path / "list.csv"
    listed.write_text("image\n" + "\n".join(files) + "\n")
    for sources, given in ((files, ""), (["-"], "\n".join(files)), ([listed], "")):
        again = answers(images / "run", *sources, "--top-k", "2", given=given)
        assert again == of_folder


def test_arrays_come_from_npy_lines_csv_and_json_lines(tmp_path):
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 3), torch.randn(40, 2))
    dataset = alrpc.Dataset(split, split, alrpc.Values(2))
    network = alrpc.associate([torch.nn.Linear(3, 8)], dataset.sample, dataset.target, activation="none")
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    predictor = alrpc.load_run(tmp_path / "run", network=network)
    rows = split.inputs[:4].tolist()
    numpy.save(tmp_path / "a.npy", split.inputs[:4].numpy())
    (tmp_path / "b.txt").write_text("\n".join(", ".join(map(str, row)) for row in rows[:2]) + f"\n{rows[2]}\n{rows[3]}\n")
    (tmp_path / "c.csv").write_text("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in rows))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))
    for name in ("a.npy", "b.txt", "c.csv", "d.jsonl"):
        (group,) = predict(predictor, read_examples([str(tmp_path / name)], "arrays", ()))
        found = torch.tensor([answer.values for _, answer in group])
        torch.testing.assert_close(found, network.predict(split.inputs[:4]))
    with (tmp_path / "e.npy").open("wb") as archive:
        numpy.savez(archive, split.inputs[:4].numpy())
    (tmp_path / "f.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "g.csv").write_text('"a"b,c\n1,2,3\n4,5,6\n')
    for name, message in (
        ("e.npy", "got an archive of arrays"),
        ("f.csv:1", "got only numbers; the first line must name the columns"),
        ("g.csv:1", "not CSV"),
    ):
        told = read_examples([str(tmp_path / name.removesuffix(":1"))], "arrays", ())
        with pytest.raises(alrpc.UserError, match=f"^{tmp_path / name}: {message}"):
            next(predict(predictor, told, leave_out=lambda message: None))
    (group,) = predict(predictor, read_examples([str(tmp_path / "f.csv")], "arrays", ("1", "2", "3")))
    assert len(group) == 1
    torch.nn.init.constant_(predictor.components[0].block.weight, 9)
    huge = [Example("a", lambda: [0.0] * 3), Example("b", lambda: [3e38] * 3)]
    told = predict(predictor, huge)
    assert [name for name, _ in next(told)] == ["a"]
    with pytest.raises(alrpc.UserError, match=r"^b: the network's answer is not finite"):
        next(told)


def test_csv_has_a_header_and_a_column_for_each_class_that_is_asked_for(texts, tmp_path):
    out = tmp_path / "answers.csv"
    done = ask(texts, "-", "--csv", "--top-k", "9", "--exit", "1", "--out", out, given="\n".join(TEXTS))
    assert done.exit_code == 0 and done.stdout == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == ["input", "label", "probability", "exit", "label_2", "probability_2"]
    for row, answer in zip(rows, answers(texts, "-", "--exit", "1", given="\n".join(TEXTS)), strict=True):
        assert (row["label"], float(row["probability"]), row["exit"]) == (answer["label"], answer["probability"], "1")
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)


def test_what_is_bad_ends_the_command_after_the_answers_before_it_or_is_left_out(texts, tmp_path):
    file, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    lines = ['{"text": "lovely"}', '{"text": 5}', "{", '{"txet": "dark"}', '{"text": "\\ud83d lovely"}', '{"text": "dark"}']
    file.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    done = ask(texts, file)
    assert done.exit_code == 1 and done.stdout.count("\n") == 1
    assert done.stderr == f"alrpc: {file}:2: got int; give a text\n"
    assert ask(texts, file, "--out", out).exit_code == 1 and list(tmp_path.iterdir()) == [file]
    done = ask(texts, file, "--skip-bad")
    assert done.exit_code == 0
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == [f"{file}:{line}" for line in (1, 5, 6)]
    told = done.stderr.splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in told[:-1]] == [f"{file}:{line}" for line in (2, 3, 4, 7)]
    assert "no key 'text'; set --column to some of: txet" in told[2] and "not UTF-8" in told[3]
    assert told[-1] == "alrpc: left out 4 of the examples, which cannot be read"
    (tmp_path / "bad.csv").write_text('text,n\n"lovely",1\nawful\n"da"rk,1\ndark,2\n')
    done = ask(texts, tmp_path / "bad.csv", "--skip-bad")
    assert [json.loads(line)["input"].rpartition(":")[2] for line in done.stdout.splitlines()] == ["2", "5"], done.output
    assert ":3: 1 fields; it must have 2: text, n" in done.stderr and ":4: not CSV" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "SOURCE: not given"),
        (["nowhere"], 2, "SOURCE: no file or folder nowhere"),
        (["-", "-"], 2, "SOURCE: got - twice"),
        (["-", "--out", "."], 2, "--out: . is a directory; give a file"),
        (["-", "--exit", "9"], 2, "--exit: got 9, but the network has exits 1 to 4"),
        (["-", "--step", "7"], 2, "--step: "),
        (["-", "--column", "a", "--column", "b"], 2, "--column: got a, b; a run on texts takes one column"),
        (["-", "--format", "csv"], 1, "-:1: no column 'text'; set --column to some of: lovely"),
        (["."], 1, ".: has no file for a run on texts"),
        (["a.npy"], 1, "a.npy: not an array of numbers in numpy's format"),
    ],
)
def test_a_mistake_is_one_line(texts, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    if "a.npy" in arguments:
        Path("a.npy").write_text("no array")
    done = ask(texts, *arguments, given="lovely\n")
    assert done.exit_code == code and done.stdout == ""
    assert done.stderr.startswith(f"alrpc: {message}") and done.stderr.count("\n") == 1, done.stderr


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.txt").write_text("lovely")
    listed = os.scandir

    def refusing(path):
        if Path(path) == tmp_path / "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(alrpc.UserError, match=f"^{tmp_path / 'a'}: cannot be read: Permission denied"):
        list(read_examples([str(tmp_path)], "texts", ()))


@pytest.mark.parametrize("form", [(), ("--csv",)])
def test_a_file_whose_name_is_not_utf8_is_answered_in_a_file_too(images, tmp_path, form):
    file = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(next((images / "data").rglob("*.png")), file)
    assert ask(images / "run", tmp_path, "--out", tmp_path / "out", *form).exit_code == 0
    text = (tmp_path / "out").read_text()
    assert "\\udcff.png" in text and (form or json.loads(text)["input"] == str(file))


def test_what_is_written_to_a_device_or_a_pipe_does_not_replace_it(texts, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    done = ask(texts, "-", "--out", tmp_path / "pipe", given="lovely")
    assert done.exit_code == 1 and done.stderr.startswith(f"alrpc: {tmp_path / 'pipe'}: cannot be written: it is no regular")
    assert (tmp_path / "pipe").is_fifo()
    assert ask(texts, "-", "--out", tmp_path / "link", given="lovely").exit_code == 0
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "out").read_text())["input"] == "-:1"


def test_no_more_is_read_than_a_micro_batch(texts):
    read = []

    def endless():
        while True:
            yield Example(str(len(read)), lambda: read.append(None) or "lovely")

    groups = predict(alrpc.load_run(texts), endless(), batch_size=4)
    for count in (4, 8, 12):
        assert len(next(groups)) == 4 and len(read) == count


def test_a_copied_run_answers_standard_input_without_home_and_cache_and_ends_with_its_reader(texts, commands):
    command = f"cp -r {texts} run && yes 'a lovely film' | {ALRPC} predict run - --batch-size 8 | head -n 3"
    done = commands.run("bash", "-c", command, HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent")
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == ["-:1", "-:2", "-:3"], done.stderr
    assert done.stderr == ""


def test_stages_give_the_answers_of_one_process(texts, tmp_path, commands):
    lines = [json.dumps({"text": text}) for text in TEXTS * 3]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:9], "{", *lines[9:]]))
    for more in (["a.jsonl"], ["bad.jsonl"], ["a.jsonl", "--exit", "2"]):
        options = ["predict", texts, *more, "--batch-size", "2", "--top-k", "2"]
        one, other = (commands.alrpc(*options, *stages) for stages in ([], ["--stages", "2"]))
        assert one.stdout and (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_stages_that_there_cannot_be_are_refused(texts):
    refused = ask(texts, "-", "--stages", "9", given="a text\n")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "alrpc: --stages: got 9, but exit 4 comes after 4 components; use 1 to 4\n"
    refused = ask(texts, "-", "--stages", "3", "--exit", "2", "--csv", given="a text\n")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "alrpc: --stages: got 3, but exit 2 comes after 2 components; use 1 to 2\n"
    refused = ask(texts, "-", "--stages", "2", "--exit", "auto", given="a text\n")
    assert refused.exit_code == 2 and "--stages: got it beside --exit auto" in refused.stderr


@pytest.fixture(scope="module")
def picky(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    torch.manual_seed(0)
    split = alrpc.Split(torch.rand(40, 3), torch.randn(40, 2))
    dataset = alrpc.Dataset(split, split, alrpc.Values(2))
    network = alrpc.associate(
        [own_blocks.Picky(3, 8), torch.nn.Linear(8, 8)], dataset.sample, dataset.target, activation="none"
    )
    out = tmp_path_factory.mktemp("picky") / "run"
    alrpc.train(network, dataset, epochs=1, out=out)
    return alrpc.load_run(out, network=network)


@pytest.mark.parametrize("stages", [1, 2])
def test_an_example_that_the_network_refuses_is_bad_by_itself(picky, stages):
    numbers = [1.0, 2.0, -1.0, 3.0, -2.0, 4.0, 5.0]
    rows = [Example(f"f:{line}", lambda number=number: [number] * 3) for line, number in enumerate(numbers, 1)]
    load = partial(pickle.loads, pickle.dumps(picky))
    answer = partial(answer_in_stages, picky, load, stages, exit=2, top_k=1) if stages > 1 else None
    refused = "the network cannot compute these inputs: ValueError: a negative number"
    told: list[str] = []
    groups = list(predict(picky, rows, batch_size=3, leave_out=told.append, answer=answer))
    assert [[name for name, _ in group] for group in groups] == [["f:1", "f:2"], ["f:4", "f:6"], ["f:7"]]
    assert told == [f"f:3: {refused}", f"f:5: {refused}"]
    groups = predict(picky, rows, batch_size=3, answer=answer)
    assert [name for name, _ in next(groups)] == ["f:1", "f:2"]
    with pytest.raises(alrpc.UserError, match=f"^f:3: {refused}$"):
        next(groups)


def test_inputs_that_a_stage_refuses_are_told(texts, images):
    predictor = alrpc.load_run(texts)
    prepared = [predictor.carried.preprocessing.prepare(text) for text in TEXTS]
    endless = ((number, prepared) for number in itertools.count())
    other = partial(alrpc.load_run, images / "run")  # a network of images
    for number, (name, refused) in enumerate(itertools.islice(answer_in_stages(predictor, other, 1, endless, 1, 1), 3)):
        assert name == number and isinstance(refused, alrpc.UserError)
        assert str(refused).startswith("the network cannot compute these inputs")


@pytest.mark.timeout(300)
def test_a_stage_that_is_killed_is_told_and_none_is_left(texts):
    before = set(multiprocessing.active_children())
    predictor = alrpc.load_run(texts)
    prepared = [predictor.carried.preprocessing.prepare(text) for text in TEXTS]
    endless = ((number, prepared) for number in itertools.count())
    answered = answer_in_stages(predictor, partial(alrpc.load_run, texts), 2, endless, len(predictor.components), 1)
    assert [next(answered)[0] for _ in range(3)] == [0, 1, 2]
    stages = set(multiprocessing.active_children()) - before
    assert len(stages) == 2
    next(iter(stages)).kill()
    with pytest.raises(alrpc.UserError, match=r"stage \d of the prediction has ended with exit code -9"):
        for _ in answered:
            pass
    assert set(multiprocessing.active_children()) <= before


def test_the_command_ends_though_its_stages_leave_much_unread(texts, commands):
    """A queue's thread must not keep the process: its micro-batch is larger than a pipe holds, and nobody reads it."""
    code = (
        "import sys, alrpc, functools; from alrpc.inference.pipelined import answer_in_stages\n"
        "run = alrpc.load_run(sys.argv[1]); ready = run.carried.preprocessing.prepare('lovely film ' * 500)\n"
        "batches = ((number, [ready] * 2000) for number in range(100))\n"
        "answered = answer_in_stages(run, functools.partial(alrpc.load_run, sys.argv[1]), 2, batches, len(run.components), 1)\n"
        "next(answered); answered.close()\n"
    )
    done = commands.run(sys.executable, "-c", code, str(texts), limit=200)
    assert done.returncode == 0, done.stderr
