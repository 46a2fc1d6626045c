"""Text of a command is UTF-8, whatever the locale says; what is not UTF-8 is refused."""

import os
import subprocess
import sys

import pytest
from conftest import LIMIT

from alrpc.posix import utf8

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND, WORKER = "from alrpc.cli.main import main; main()", "from alrpc.worker import main; main()"


def run(program: str, *arguments: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, **variables}, capture_output=True, timeout=LIMIT
    )


def test_a_path_means_the_same_in_a_locale_that_is_not_utf8():
    ended = run(COMMAND, b"report", "rün".encode(), **ASCII)
    assert ended.returncode == 2
    assert ended.stderr.decode().startswith("alrpc: rün: is not a directory")


def test_what_is_printed_is_utf8_in_a_locale_that_is_not():
    assert "3 × 3" in run(COMMAND, b"list", **ASCII).stdout.decode()


def test_the_processes_of_a_command_are_in_the_utf8_mode_as_well(monkeypatch):
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: begun.append(command))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    utf8.use_utf8()
    assert begun == [[sys.executable, "-X", "utf8", *sys.orig_argv[1:]]]
    assert os.environ["PYTHONUTF8"] == "1"


def test_a_command_in_an_utf8_locale_is_not_started_anew(monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it was"))
    utf8.use_utf8()


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(COMMAND, ("report", b"run-\xe9")), (COMMAND, ("train", "--out", b"run-\xe9")), (WORKER, ("--out", b"run-\xe9"))],
    ids=["report", "train", "worker"],
)
def test_an_argument_that_is_not_utf8_is_refused(program, arguments, tmp_path):
    of_torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    ended = run(program, *arguments, **of_torchrun, MASTER_ADDR="127.0.0.1", MASTER_PORT="1", LC_ALL="C.UTF-8")
    assert ended.returncode == 2
    assert ended.stderr.decode() == "alrpc: got b'run-\\xe9', which is not UTF-8; give it in UTF-8\n"
