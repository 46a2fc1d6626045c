"""A user without a home directory and without an entry in the system's list of users, as in many containers."""

import pwd

import pytest
from small_data import write_texts

import alrpc


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_texts_are_prepared_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = alrpc.load_data("text-file", file=str(write_texts(tmp_path / "texts.jsonl")))
    assert len(dataset.train) > 100 and [each.name for each in tmp_path.iterdir()] == ["texts.jsonl"]


def test_a_download_needs_a_directory():
    with pytest.raises(alrpc.UserError, match=r"^data\.root: not given, and this user has no home directory for mnist"):
        alrpc.load_data("mnist")
