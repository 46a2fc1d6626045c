"""What the tests share: real command lines with a time limit, and a check that they leave no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # ignored where the suite runs in the background, and so by all that it starts
pytest_plugins = ["damageable"]  # of tests/modules; a second conftest.py would hide this one

MODULES = Path(__file__).parent / "modules"  # blocks and data "of one's own", outside the package
OWN_PATH = os.pathsep.join(filter(None, (str(MODULES), os.environ.get("PYTHONPATH"))))
ALRPC = str(Path(sys.executable).parent / "alrpc")  # the console script of this environment
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # with this environment's torchrun
LIMIT = 400  # seconds after which a command or a wait is taken to hang; no test expects anything to last as long
START = 0.15  # seconds that a process that imports numpy takes on an idle machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", type=int, default=1, help="How many runs each test of tests/chaos disturbs.")
    parser.addoption("--chaos-seed", type=int, default=int(time.time()), help="Of the moments and the processes.")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Commands:
    """Runs `alrpc` and its kin in a test's own folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._started: list[psutil.Process] = []

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": OWN_PATH, "CUDA_VISIBLE_DEVICES": "", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(psutil.Process(process.pid))
        return process

    def run(self, *command: str, limit: float = LIMIT, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **environment)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def alrpc(self, *arguments: str, limit: float = LIMIT, **environment: str) -> subprocess.CompletedProcess:
        return self.run(ALRPC, *arguments, limit=limit, **environment)

    def workers(self) -> dict[int, psutil.Process]:
        """The processes of a run in this folder, by rank."""
        ranks = {}
        for process in self._here():
            with contextlib.suppress(psutil.Error):
                if found := re.fullmatch(r"alrpc-rank-(\d+)", process.name()):
                    ranks[int(found[1])] = process
        return ranks

    def _here(self) -> Iterator[psutil.Process]:
        """All processes in this folder but those that the test has started, which may have ended and not been waited for."""
        started = {process.pid for process in self._started}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid not in started and process.cwd() == str(self.folder):
                    yield process

    def leftovers(self, seconds: float) -> list[psutil.Process]:
        """Processes still there after so many seconds."""
        end = time.monotonic() + seconds
        while (left := list(self._here())) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def end(self) -> None:
        for process in [*self._here(), *self._started]:
            if process.is_running():
                process.send_signal(signal.SIGKILL)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    try:
        yield commands
        assert commands.leftovers(patience(10)) == []
    finally:
        commands.end()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], object]:
    """Waits for something to be true, and gives it."""

    def wait(condition: Callable[[], object]) -> object:
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError("it did not happen in time")

    return wait


def patience(seconds: float) -> float:
    """How long what takes so many seconds on an idle machine may take on this one now, by how long a process takes to start."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return seconds * max(2.0, (time.monotonic() - began) / START)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def read_summary(directory: Path) -> dict:
    return json.loads((directory / "summary.json").read_text())
