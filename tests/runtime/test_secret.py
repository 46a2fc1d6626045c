"""Where the secret of a run comes from."""

import os
import stat
from pathlib import Path

import pytest

from alrpc import UserError
from alrpc.runtime.secret import take_secret


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in ("ALRPC_SECRET", "ALRPC_SECRET_FILE", "TORCHELASTIC_ERROR_FILE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_it_is_taken_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("ALRPC_SECRET", "long enough for a secret\n")
    assert take_secret() == b"long enough for a secret"
    assert "ALRPC_SECRET" not in os.environ


def test_a_file_is_made_by_the_first_and_read_by_the_others(monkeypatch, tmp_path):
    path = tmp_path / "secret"
    monkeypatch.setenv("ALRPC_SECRET_FILE", str(path))
    first = take_secret()
    assert len(first) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert take_secret() == first and list(tmp_path.iterdir()) == [path]


def test_processes_of_one_torchrun_find_it_in_its_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    found = set()
    for rank in "01":
        folder = tmp_path / "attempt_0" / rank
        folder.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        found.add(take_secret())
    assert len(found) == 1
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="ALRPC_SECRET: not set; processes on several hosts need a secret"):
        take_secret()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_or_write_is_refused(monkeypatch, tmp_path, mode):
    path = tmp_path / "secret"
    path.write_text("x" * 64)
    path.chmod(mode)
    monkeypatch.setenv("ALRPC_SECRET_FILE", str(path))
    with pytest.raises(UserError, match=f"{path}: only its owner, who runs this, may read and write .*: chmod 600"):
        take_secret()


def test_a_short_secret_and_a_file_that_cannot_be_made_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ALRPC_SECRET", "short")
    with pytest.raises(UserError, match="ALRPC_SECRET: got a secret of 5 characters; it should have 16 at least"):
        take_secret()
    path: Path = tmp_path / "nowhere" / "secret"
    monkeypatch.setenv("ALRPC_SECRET_FILE", str(path))
    with pytest.raises(UserError, match=f"{path}: the secret cannot be read or made: No such file or directory"):
        take_secret()
