"""A command that is given no directory takes the last run; runs are named after model and data; JSON and YAML on request."""

import contextlib
import json
import os
import shutil

import pytest
import yaml
from click.testing import CliRunner
from conftest import read_summary

from alrpc.cli.main import main
from alrpc.config import load_config, run_name
from alrpc.network import resolve

FIELDS = ["--set", "train.epochs=1", "--set", "model.widths=[8, 8]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, of which the one whose name comes first was begun last."""
    folder = tmp_path_factory.mktemp("last")
    with contextlib.chdir(folder):
        trained = CliRunner().invoke(main, ["train", "--quiet", *FIELDS])
    assert trained.exit_code == 0, trained.output
    (run,) = (folder / "runs").iterdir()
    shutil.copytree(run, folder / "runs" / "a-later-one")
    os.utime(run / "config.yaml", (1, 1))
    return folder


def invoke(folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, arguments)


def test_a_run_is_named_after_its_model_and_its_data(runs):
    (name,) = (run.name for run in (runs / "runs").iterdir() if run.name != "a-later-one")
    assert name.startswith("mlp-digits-2")
    own = load_config(None, ["model.name=package.module:build", "data.name=digits"])
    assert run_name(own) == "package.module-build-digits"


@pytest.mark.parametrize("command", ["report", "inspect", "timeline"])
def test_without_a_directory_the_last_run_is_taken_and_told(runs, monkeypatch, command):
    shown = invoke(runs, monkeypatch, command)
    assert shown.exit_code in (0, 1), shown.output  # so short a run may have no timeline
    assert shown.stderr.startswith("alrpc: the last run: runs/a-later-one\n")


def test_resuming_without_a_directory_continues_the_last_run(runs, monkeypatch, tmp_path):
    shutil.copytree(runs / "runs", tmp_path / "runs")
    os.utime(tmp_path / "runs" / "a-later-one" / "config.yaml")
    resumed = invoke(tmp_path, monkeypatch, "train", "--resume", "--set", "train.epochs=2", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stderr == "alrpc: the last run: runs/a-later-one\n" and resumed.stdout.endswith("runs/a-later-one\n")
    assert read_summary(tmp_path / "runs" / "a-later-one")["epochs"] == 2


@pytest.mark.parametrize(
    ("command", "name"),
    [(["report"], "RUN"), (["timeline"], "RUN"), (["inspect"], "RUN"), (["launch", "--resume"], "--resume")],
)
def test_where_there_is_no_run_a_directory_is_asked_for(tmp_path, monkeypatch, command, name):
    refused = invoke(tmp_path, monkeypatch, *command)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert refused.stderr.startswith(f"alrpc: {name}: got no directory, and there is no run below {tmp_path / 'runs'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["train"], ["launch", "--stages", "2"], ["compare", "--stages", "2"]], ids=" ".join)
def test_the_whole_configuration_is_printed_and_nothing_is_run(tmp_path, monkeypatch, command):
    printed = invoke(tmp_path, monkeypatch, *command, *FIELDS, "--print-config")
    assert printed.exit_code == 0 and list(tmp_path.iterdir()) == []
    stages = [f"pipeline.stages={command[2]}"] if len(command) > 1 else []
    config, _ = resolve(load_config(None, [*FIELDS[1::2], *stages]))
    assert yaml.safe_load(printed.stdout) == config.model_dump(mode="json")


def test_what_is_resumed_can_be_printed_too(runs, monkeypatch):
    printed = invoke(runs, monkeypatch, "launch", "--resume", "--set", "train.epochs=9", "--print-config")
    assert printed.exit_code == 0 and yaml.safe_load(printed.stdout)["train"]["epochs"] == 9
    assert read_summary(runs / "runs" / "a-later-one")["epochs"] == 1


def test_inspect_prints_as_json_what_it_writes(runs, monkeypatch):
    shown = invoke(runs, monkeypatch, "inspect", "runs/a-later-one", "--json")
    assert shown.exit_code == 0 and shown.stderr == ""
    assert json.loads(shown.stdout) == json.loads((runs / "runs" / "a-later-one" / "quality.json").read_text())
