"""Mistakes in the words of a command are told before torch is imported, with exit code 2; Ctrl-C is not lost in an import."""

import gc
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from conftest import LIMIT, MODULES

from alrpc.cli.main import main
from alrpc.cli.options import heavy_imports
from alrpc.data import text, vision
from alrpc.data.catalog import TEXT, VISION
from alrpc.errors import UserError, command_code

BEFORE_TORCH = """
import sys
from alrpc.cli.main import main
sys.modules["torch"] = None  # importing it raises
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "--set", "model.name=vg"], "model.name: unknown model 'vg' (did you mean vgg?); use mlp, vgg,"),
        (["train", "--set", "model.widht=3"], "model.widht: unknown field (did you mean widths?); model mlp has widths,"),
        (["launch", "--set", "data.name=mnsit"], "data.name: unknown data set 'mnsit' (did you mean mnist?); use digits,"),
        (
            ["plan", "--set", "train.optimizer=adem"],
            "train.optimizer: got 'adem'; it should be 'adam', 'adamw', 'sgd' or 'lars' (did you",
        ),
        (
            ["train", "--set", "train.schedule=cosin"],
            "train.schedule: got 'cosin'; it should be 'constant', 'linear' or 'cosine' (",
        ),
        (["train", "--set", "objective.poling=mean"], "objective.poling: unknown field; did you mean objective.pooling?"),
        (["train", "--set", "train.end_lr=1"], "train.end_lr: got 1.0, above train.lr"),
        (["compare", "--config", "digit-mlp"], "--config: no file digit-mlp (did you mean digits-mlp?)"),
        (["profile", "--set", "data.root=absent"], "data.root: absent is not a directory"),
        (["train", "--set", "data.name=image-folder"], "data.root: not given; image-folder needs"),
        (["train", "--set", "data.name=text-file"], "data.file: not given, but needed by text-file"),
        (["launch", "--set", "model.name=own_block:build"], "model.name: own_block:build: no module named 'own_block'"),
        (
            ["launch", "--set", "model.name=own_blocks:bild"],
            "model.name: own_blocks:bild: module 'own_blocks' has no 'bild' (did you mean build?)",
        ),
        (
            ["train", "--set", "model.name=own_blocks:build", "--set", "model.widht=3"],
            "model.widht: unknown field (did you mean width?)",
        ),
        (
            ["bench", "ceiling", "--set", "data.name=small_data:nothing"],
            "data.name: small_data:nothing: module 'small_data' has no",
        ),
        (["launch", "--resume", "absent"], "--resume: absent is not the directory of a run"),
        (["train", "--resume", "absent", "--out", "other"], "--out: a run that goes on has its own directory"),
    ],
)
def test_a_wrong_name_is_told_before_torch_is_imported(tmp_path, arguments, message):
    told = subprocess.run(
        [sys.executable, "-c", BEFORE_TORCH, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{MODULES}:{':'.join(sys.path)}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert told.returncode == 2, told.stderr
    assert told.stderr.startswith(f"alrpc: {message}") and told.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source", ["from own_blocks import *", "def __getattr__(name): return list", "globals()['build'] = list"]
)
def test_a_function_that_the_text_of_a_module_does_not_show_is_left_to_the_import(tmp_path, monkeypatch, source):
    from alrpc.config.own_code import find_function

    (tmp_path / "hidden_build.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert find_function("hidden_build:build", "model.name") is None


def test_the_checks_import_none_of_the_users_code(tmp_path, monkeypatch):
    from alrpc.config.own_code import find_function, parameters

    (tmp_path / "loud_build.py").write_text("def build(width=3, *, depth): ...\nraise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert parameters(find_function("loud_build:build", "model.name")) == ["width", "depth"]
    assert "loud_build" not in sys.modules


def test_the_catalog_has_what_the_readers_of_data_have():
    assert set(VISION) == set(vision.STATISTICS) and set(TEXT) == {*text.HUB, "text-file"}


def test_clicks_own_refusals_have_the_same_exit_code():
    for arguments in (["launch", "--stage", "2"], ["launch", "--stages", "0"], ["bogus"], ["train", "--step"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2


def all_options(command):
    for each in getattr(command, "commands", {}).values():
        yield from all_options(each)
    yield from command.params


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_that_takes_a_number_takes_what_is_none(value):
    """Nan is within any bounds that click knows of; a router with a delay of nan would never end."""
    options = [option for option in all_options(main) if isinstance(option.type, click.types.FloatParamType)]
    assert "--delay-ms" in [name for option in options for name in option.opts]
    for option in options:
        with pytest.raises(click.BadParameter, match=f"{value}.* is not "):
            option.type.convert(value, option, None)


def test_what_is_no_mistake_in_the_words_has_another_exit_code():
    assert command_code(UserError("texts.csv:3: not UTF-8")) == 1


def test_ctrl_c_within_an_import_ends_the_command_after_it():
    imported = []
    with pytest.raises(KeyboardInterrupt), heavy_imports():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # as libraries do around what they can do without
            imported.append("interrupted")
        imported.append("torch")
        assert not gc.isenabled()
    assert imported == ["torch"] and gc.isenabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heavy_imports():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
