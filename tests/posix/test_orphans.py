"""A command that is killed, by SIGKILL and at any moment, leaves neither a process nor a file behind, but in its run's directory."""

import contextlib
import itertools
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ALRPC, LIMIT

SLOW = """
import time
from torch import nn

class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.3)
        return super().forward(x.flatten(1))

def build():
    return [Slow(64, 16), Slow(16, 16), Slow(16, 16)]
"""
OWN = ["--set", "model.name=slow:build", "--set", "train.epochs=5000"]
READERS = ["--set", "data.workers=2"]


def below(process: psutil.Process, depth: int) -> list[psutil.Process]:
    """The descendants that are so many generations younger and have worked for a while."""
    generation = [process]
    for _ in range(depth):
        generation = list(itertools.chain.from_iterable(parent.children() for parent in generation))
    return [child for child in generation if child.cpu_times().user > 0.1]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for temporary files with a short path, in which readers put their sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


# Whose processes are to be at work when the command is killed: so many, and in which generation.
@pytest.mark.parametrize(
    ("command", "depth", "count"),
    [
        (["plan", "--stages", "2", *OWN], 2, 1),  # the neighbour
        (["launch", "--stages", "2", *OWN], 1, 1),  # the fork server, while it imports
        (["launch", "--stages", "2", *OWN], 2, 3),
        (["launch", "--stages", "2", *OWN, "--set", "pipeline.split=auto"], 4, 1),  # the neighbour of the coordinator
        (["launch", "--stages", "2", *OWN, *READERS], 4, 2),
        (["train", *OWN, *READERS], 2, 2),
        (["compare", "--stages", "2", *OWN, "--methods", "gpipe"], 2, 2),
        (["profile", "--stages", "2", *OWN, "--methods", "al"], 2, 3),
        (["bench", "ceiling", "--config", "digits-mlp", "--stages", "2", *OWN], 2, 3),
        (["bench", "hops", "--stages", "2", "--rounds", "1", "--peer", "gpipe"], 1, 3),  # the fork server, and spawned peers
    ],
    ids=lambda value: "-".join(re.findall(r"\w+", str(value)))[:40],
)
def test_nothing_is_left_of_a_killed_command(commands, scratch, until, command, depth, count):
    (commands.folder / "slow.py").write_text(SLOW)
    process = commands.start(ALRPC, *command, TMPDIR=str(scratch))
    root = psutil.Process(process.pid)

    def at_work() -> bool:
        assert process.poll() is None, process.communicate()
        try:
            return len(below(root, depth)) >= count
        except psutil.NoSuchProcess:
            return False

    until(at_work)
    if READERS[-1] in command:
        until(lambda: list(scratch.glob("pymp-*")))  # a reader has begun to hand over tensors
    shared = set()
    for child in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            shared |= {Path(each.path) for each in child.memory_maps() if each.path.startswith("/dev/shm")}
    process.send_signal(signal.SIGKILL)
    assert commands.leftovers(LIMIT) == []  # at once, but a process that is still importing on a busy machine
    assert [path for path in scratch.iterdir() if not path.name.startswith("torchinductor")] == []  # torch's own cache
    assert [path for path in shared if path.exists()] == []
