"""A signal that was ignored as a command began, by `nohup` or by a shell in the background, stays ignored."""

import signal
from pathlib import Path

import pytest
from conftest import ALRPC, LIMIT, PATH, free_port, read_summary

TORCHRUN = str(Path(__file__).parents[2] / "launch" / "torchrun.sh")
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


@pytest.mark.parametrize(
    "command", [[ALRPC, "launch", "--stages", "2"], [ALRPC, "train"], [TORCHRUN, "2"]], ids=["launch", "train", "torchrun"]
)
def test_it_ends_neither_the_run_nor_a_process_of_it(commands, until, command):
    ignoring = ["bash", "-c", """trap '' HUP INT QUIT; exec "$@" """, "bash"]
    options = ["--set", "train.epochs=60", "--out", "run", "--quiet"]
    process = commands.start(*ignoring, *command, *options, PATH=PATH, PORT=free_port())
    until(lambda: list(commands.folder.glob("run/checkpoints/*/manifest.json")))
    for number in IGNORED:
        for each in (process, *commands.workers().values()):
            each.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    assert read_summary(commands.folder / "run")["epochs"] == 60
