"""Code of a user's own that calls sys.exit is named, and is taken neither for a wrong option nor for a process that was killed."""

import pytest
from conftest import PATH, free_port

LAUNCH = ["launch", "--stages", "2"]


@pytest.mark.parametrize(
    ("command", "field", "message"),
    [
        (["train"], "model.name=exits_at_import:build", "model.name: importing exits_at_import called sys.exit(2)"),
        (LAUNCH, "data.name=exits_at_import:load", "data.name: importing exits_at_import called sys.exit(2)"),
        (LAUNCH, "model.name=own_exits:build", "model.name: own_exits:build called sys.exit('no network today')"),
        (["train"], "data.name=own_exits:load", "data.name: own_exits:load called sys.exit(2)"),
        (LAUNCH, "data.name=own_exits:load", "data.name: own_exits:load called sys.exit(2)"),
    ],
)
def test_it_is_named_before_a_run_begins_and_nothing_is_left(commands, command, field, message):
    done = commands.alrpc(*command, "--set", field, "--out", "run")
    assert done.stderr.startswith(f"alrpc: {message}") and done.stderr.count("\n") == 1, done.stderr
    assert done.returncode in (1, 2) and list(commands.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "fields", "told", "calls"),
    [
        (["train"], ["model.name=own_exits:build_blocks"], "", "line 23: called sys.exit(134)"),
        (LAUNCH, ["model.name=own_exits:build_blocks"], "stage 2 (rank 2, ", "line 23: called sys.exit(134)"),
        (["train"], ["data.name=own_exits:load_split"], "the train split cannot be read: ", "line 38: called sys.exit(3)"),
        (
            LAUNCH,
            ["data.name=own_exits:load_split", "data.workers=1"],
            "the coordinator (rank 0, ",
            "line 38: called sys.exit(3)",
        ),
    ],
)
def test_it_is_named_in_the_middle_of_a_run(commands, command, fields, told, calls):
    options = [part for field in fields for part in ("--set", field)]
    done = commands.alrpc(*command, *options, "--out", "run")
    assert done.returncode == 1 and done.stderr.startswith(f"alrpc: {told}"), done.stderr
    assert f"own_exits.py, {calls}" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (commands.folder / "run" / "config.yaml").exists()


def test_it_is_named_under_torchrun(commands):
    arguments = ["--master-port", free_port(), "--nproc-per-node", "3", "-m", "alrpc.worker", "--out", "run", "--quiet"]
    done = commands.run("torchrun", *arguments, "--set", "model.name=own_exits:build_blocks", PATH=PATH)
    assert done.returncode == 1 and "SIGABRT" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("alrpc: ")]
    assert message.startswith("alrpc: stage 2 (rank 2, ") and "own_exits.py, line 23: called sys.exit(134)" in message
