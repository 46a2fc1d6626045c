"""A run's directory: made by one alone, held until its end, and never taken away by another; and its lines, which are whole."""

import errno
import fcntl
import json
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from alrpc import rundir
from alrpc.errors import UsageError, UserError


def begin_at_once(out: Path | None, number: int) -> list[Path | UserError]:
    """What each of several commands gets that begin at the same moment, and all hold what they got until each has got something."""
    barrier, told = threading.Barrier(number), threading.Barrier(number)

    def begin(_) -> Path | UserError:
        barrier.wait()
        try:
            with rundir.new_directory(out, "digits") as directory:
                (directory / "config.yaml").write_text("mine")
                told.wait()
                return directory
        except UserError as error:
            told.wait()
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begin, range(number)))


def test_runs_that_begin_in_the_same_second_each_have_a_directory_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(10):
        directories = begin_at_once(None, 8)
        assert all(isinstance(each, Path) and (each / "config.yaml").is_file() for each in directories), directories
        assert len(set(directories)) == 8


@pytest.mark.parametrize("exists", [False, True])
def test_of_several_runs_that_want_one_directory_one_has_it_and_the_others_are_refused_and_change_nothing(tmp_path, exists):
    for number in range(10):
        out = tmp_path / str(number)
        if exists:
            out.mkdir()
        got = begin_at_once(out, 8)
        winners = [each for each in got if isinstance(each, Path)]
        assert len(winners) <= 1  # each may have been in the other's way
        assert all("is under way" in str(each) or "is not empty" in str(each) for each in got if isinstance(each, UserError))
        if winners:
            assert (out / "config.yaml").read_text() == "mine"
        else:
            assert not out.exists() or not list(out.iterdir())


def test_a_directory_that_stays_empty_is_removed_by_who_has_made_it(tmp_path):
    (tmp_path / "before").mkdir()
    for out in (tmp_path / "before", tmp_path / "new" / "run"):
        with rundir.new_directory(out, "digits") as directory:
            (directory / "logs").mkdir()
            (directory / "config.yaml").write_text("refused")
            rundir.clear_directory(directory)
    assert [each.name for each in tmp_path.iterdir()] == ["before"]


def test_a_directory_stays_locked_until_the_processes_that_joined_have_ended(tmp_path):
    with rundir.lock_directory(tmp_path, joining=True):  # a process of a run whose launcher was killed
        with pytest.raises(UserError, match="a training is under way in it"), rundir.lock_directory(tmp_path):
            pass
        assert rundir.is_locked(tmp_path)
    with rundir.lock_directory(tmp_path), rundir.lock_directory(tmp_path, joining=True):
        pass
    assert not rundir.is_locked(tmp_path)


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with rundir.new_directory(tmp_path / "run", "digits"), rundir.lock_directory(tmp_path / "run", joining=True):
        assert not rundir.is_locked(tmp_path / "run")


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond this size, as on a disk that is full then: what fits of a write is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_line_is_cut_by_a_full_disk_and_then_written_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste')  # by a process that was killed
    with rundir.open_lines(path) as file:
        rundir.append_lines(file, [{"step": 1}])
        with disk_of(path.stat().st_size + 20):
            for _ in range(2):
                with pytest.raises(OSError) as raised:
                    rundir.append_lines(file, [{"step": 2}, {"step": 3}])
                assert raised.value.filename == str(path)
        rundir.append_lines(file, [{"step": 4}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 4]


def test_a_directory_whose_path_is_not_utf8_is_refused(tmp_path):
    refused = pytest.raises(UsageError, match=r"--out: got b'.*run-\\xe9', which is not UTF-8")
    with refused, rundir.new_directory(tmp_path / "run-\udce9", "run"):
        pass
    assert not list(tmp_path.iterdir())
