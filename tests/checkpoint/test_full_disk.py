"""A disk that is full, or cannot be written to, for a while: training goes on, says so, and keeps the last whole checkpoint."""

import errno
import json
import os
import subprocess

import pytest
from conftest import ALRPC, LIMIT, read_summary

import alrpc
from alrpc import rundir
from alrpc.errors import StageFailed
from alrpc.runtime.run import resume_sequentially, run_sequentially

FIELDS = ("--set", "train.epochs=18", "--set", "checkpoint.every=10")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run([ALRPC, "train", *FIELDS, "--quiet", "--out", "run"], cwd=folder, timeout=LIMIT)
    assert done.returncode == 0
    return read_summary(folder / "run")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", path):
        pytest.skip("to mount a disk needs root and the right to")
    yield path
    for place in (path / "run" / "checkpoints", path):
        subprocess.run(["umount", "-l", place], capture_output=True, timeout=20)


def mount(*arguments) -> int:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, timeout=20).returncode


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * (64 << 10))
        except OSError:
            pass
    return (disk / "filler").unlink


def make_read_only(disk):
    places = disk / "run" / "checkpoints"
    assert mount("--bind", places, places) == 0
    assert mount("-o", "remount,bind,ro", places) == 0
    return lambda: mount("-o", "remount,bind,rw", places)


@pytest.mark.parametrize(
    ("command", "deny", "reason"),
    [
        (["launch", "--stages", "2"], fill, "No space left on device"),
        (["launch", "--stages", "2"], make_read_only, "Read-only file system"),
        (["train"], fill, "No space left on device"),
    ],
    ids=["full", "read-only", "full-in-one-process"],
)
def test_training_goes_on_and_the_last_whole_checkpoint_stays(commands, until, undisturbed, disk, command, deny, reason):
    process = commands.start(ALRPC, *command, *FIELDS, "--out", "disk/run")
    run = disk / "run"
    whole = until(lambda: sorted(run.glob("checkpoints/*/manifest.json")))
    allow = deny(disk)
    whole = sorted(run.glob("checkpoints/*/manifest.json"))
    lines = []
    while "no checkpoint of step" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
        lines.append(line)
    assert reason in line
    assert [path for path in whole if path.exists()] and process.poll() is None
    allow()
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    summary = read_summary(run)
    assert summary["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert any(reason in failure for failure in summary["checkpoint_failures"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_disk_that_is_full_at_the_very_end_costs_no_result(tmp_path, monkeypatch):
    config = alrpc.load_config(None, ["model.widths=[16]", "pipeline.stages=1", "train.epochs=2", "checkpoint.keep=1"])
    whole, _ = run_sequentially(config, "digits-mlp", tmp_path / "whole", quiet=True)
    run = tmp_path / "run"

    write = rundir.write_atomically

    def full(path, *more, **options):
        if path.name == rundir.SUMMARY:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *more, **options)

    with monkeypatch.context() as patch, pytest.raises(StageFailed) as raised:
        patch.setattr(rundir, "write_atomically", full)
        run_sequentially(config, "digits-mlp", run, quiet=True)
    told = str(raised.value)
    assert told.startswith(
        f"{run}/summary.json: No space left on device; the result is: test accuracy {whole['test_accuracy']:.4f}"
    )
    assert told.endswith(f"its last complete checkpoint is that of step 46; --resume {run} goes on from it")
    summary, _ = resume_sequentially(run, [], None, quiet=True)
    assert all(summary[name] == whole[name] for name in ("parameters_sha256", "exits", "steps", "parameters"))
