"""Files and directories that may not be read or written: one line each, which names the path and what is needed."""

import os
import shutil
import subprocess

import pytest
from conftest import ALRPC

import alrpc
from alrpc.runtime.run import run_sequentially

OBEYING = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"] if os.geteuid() == 0 else []
"""Before a command, so that permissions hold for root too."""


@pytest.fixture(scope="module", autouse=True)
def permissions_hold(tmp_path_factory):
    closed = tmp_path_factory.mktemp("closed") / "file"
    closed.touch(mode=0)
    if (OBEYING and shutil.which("setpriv") is None) or subprocess.run(
        [*OBEYING, "cat", closed], capture_output=True
    ).returncode == 0:
        pytest.skip("permissions do not hold for this user")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    config = alrpc.load_config(None, ["model.widths=[16]", "pipeline.stages=1", "train.epochs=1"])
    run_sequentially(config, "digits-mlp", run, quiet=True)
    return run


@pytest.mark.parametrize(
    ("path", "mode", "command", "message"),
    [
        ("run", 0o555, "timeline run", "Permission denied; it needs the permission to write in {}/run"),
        ("run", 0o555, "report run", "run/report.html: cannot be written: Permission denied"),
        ("run", 0o555, "train --resume run --set train.epochs=2", "it needs the permission to write in {}/run"),
        ("run/metrics.jsonl", 0o444, "launch --resume run --set train.epochs=2", "it needs the permission to write it"),
        ("run/checkpoints", 0, "inspect run", "run/checkpoints: Permission denied; it needs the permission to read it"),
        ("run", 0, "report run", "Permission denied; it needs the permission to enter {}/run"),
        ("run", 0, "launch --resume run", "Permission denied; it needs the permission to enter {}/run"),
        ("c.yaml", 0, "train --config c.yaml", "c.yaml: cannot be read: Permission denied"),
        ("locked", 0, "train --config locked/x/c.yaml", "it needs the permission to enter {}/locked"),
        ("locked", 0, "train --set data.root=locked/x", "it needs the permission to enter {}/locked"),
        ("locked", 0, "report locked/x", "it needs the permission to enter {}/locked"),
        ("locked", 0, "launch --out locked/run", "--out: cannot write to locked/run: Permission denied; give a directory"),
        ("locked/x", 0o555, "compare --out locked/x", "--out: cannot write to locked/x; give a directory"),
        (".", 0o555, "train", "--out: cannot write to runs/"),
    ],
)
def test_it_is_told_in_one_line_and_nothing_is_changed(trained, commands, path, mode, command, message):
    here = commands.folder
    shutil.copytree(trained, here / "run")
    (here / "locked" / "x").mkdir(parents=True)
    (here / "c.yaml").write_text("train: {epochs: 1}")
    before = {each: each.read_bytes() for each in here.rglob("*") if each.is_file()}
    (here / path).chmod(mode)
    try:
        done = commands.run(*OBEYING, ALRPC, *command.split())
    finally:
        (here / path).chmod(0o755)
    assert done.returncode in (1, 2) and done.stderr.startswith("alrpc: ") and done.stderr.count("\n") == 1, done.stderr
    assert message.format(here) in done.stderr, done.stderr
    assert {each: each.read_bytes() for each in before} == before
    assert not (here / "runs").exists() and not list((here / "locked").glob("*/*"))
