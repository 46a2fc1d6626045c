"""What the command line says, and what it leaves untouched when it refuses."""

import platform
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import torch
from conftest import LIMIT, read_summary

import alrpc
from alrpc.system import working_commit


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["launch", "--help"], ["train", "--help"], ["inspect", "--help"], ["report", "--help"], ["--version"]],
)
def test_help_answers_without_loading_torch(arguments):
    code = (
        "import sys; from alrpc.cli.main import main; main(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=LIMIT)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.strip().splitlines()
    assert lines[-1] == "False" and len(lines) > 1


@pytest.mark.parametrize("command", ["launch", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.batch_size=0"], "alrpc: data.batch_size: got 0; it should be greater than 0"),
        (["--config", "absent.yaml"], "alrpc: --config: no file absent.yaml"),
        (["--set", "data.root=absent"], "alrpc: data.root: absent is not a directory"),
        (["--out", "taken"], "alrpc: --out: taken is not empty; give a directory that does not exist yet"),
        (["--out", "taken/file/run"], "alrpc: --out: cannot write to taken/file/run"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(commands, command, arguments, message):
    (commands.folder / "taken").mkdir()
    (commands.folder / "taken" / "file").touch()
    before = sorted(commands.folder.rglob("*"))
    refused = commands.alrpc(command, *arguments)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith(message) and refused.stderr.count("\n") == 1
    assert sorted(commands.folder.rglob("*")) == before


def test_train_shows_a_line_an_epoch_and_ends_with_result_and_directory(commands):
    trained = commands.alrpc("train", "--set", "train.epochs=2")
    first, *epochs, last = trained.stdout.strip().splitlines()
    assert first.startswith("mlp on digits, associated, sequential: 1437 samples, 23 micro-batches an epoch")
    assert [line.split("  ")[0] for line in epochs if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    (run,) = (commands.folder / "runs").iterdir()
    summary = read_summary(run)
    assert last.startswith(f"test accuracy {summary['test_accuracy']:.4f} after 2 epochs in ")
    assert last.endswith(f"runs/{run.name}") and run.name.startswith("mlp-digits-")
    assert trained.stderr == ""


def test_the_summary_tells_what_made_it_in_either_engine(commands):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        assert commands.run(*git, *arguments).returncode == 0
    commit = commands.run("git", "rev-parse", "HEAD").stdout.strip()
    before = datetime.now(UTC).replace(microsecond=0)
    for command in (["train"], ["launch", "--stages", "2"]):
        arguments = [*command, "--set", "train.epochs=1", "--quiet", "--out", command[0]]
        done = commands.alrpc(*arguments)
        assert done.returncode == 0, done.stderr
        summary = read_summary(commands.folder / command[0])
        assert summary["command"] == ["alrpc", *arguments]
        assert before <= datetime.fromisoformat(summary["date"]) <= datetime.now(UTC)
        assert summary["commit"] == commit and len(commit) == 40
        assert (summary["alrpc"], summary["torch"]) == (alrpc.__version__, torch.__version__)
        assert summary["python"] == platform.python_version()
        assert (summary["samples"], summary["test_samples"]) == (1437, 360)


def test_without_a_repository_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert working_commit() is None


def test_verbose_prints_all_losses_and_checkpoints_and_what_the_processes_log(commands):
    (commands.folder / "loud.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    print('builds its blocks')\n"
        "    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 8)]\n"
    )
    options = ["-v", "--set", "model.name=loud:build", "--set", "train.epochs=1", "--set", "train.log_every=10"]
    for command in (["train"], ["launch", "--stages", "2"]):
        done = commands.alrpc(*command, *options, "--out", command[0])
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        for step in (10, 20, 23):
            for component in (1, 2):
                assert sum(line.startswith(f"step {step}  component {component}  associated loss ") for line in lines) == 1
        assert lines.count("step 23  checkpoint complete") == 1
    for stage in (1, 2):
        assert f"stage-{stage}: builds its blocks" in done.stderr.splitlines()


@pytest.mark.parametrize("command", [["train"], ["launch", "--stages", "2"]])
def test_a_block_that_has_nothing_to_learn_is_told_in_one_line(commands, command):
    done = commands.alrpc(*command, "--set", "model.name=own_blocks:build_idle", "--set", "train.epochs=1", "--quiet")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "alrpc: blocks without parameters: 1 (Flatten), of 3; each is a component that trains no block; join"
    )
