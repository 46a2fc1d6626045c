"""Whatever is in the files of a run, reading them ends with a run or with one line."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

import alrpc
from alrpc import rundir
from alrpc.analysis.aligned import align_timings
from alrpc.analysis.report.page import make_page
from alrpc.analysis.rundata import read
from alrpc.analysis.timeline import choose_window, describe
from alrpc.checkpoint.commit import find_checkpoint
from alrpc.checkpoint.manifest import read_manifest
from alrpc.config import load_config
from alrpc.errors import UserError

FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
MANIFEST, TENSORS = "checkpoints/step-00000046/manifest.json", "checkpoints/step-00000046/component-001.safetensors"
READ = ("summary.json", "quality.json", "calibration.json", "comparison.json", "config.yaml", "metrics.jsonl", "timings.jsonl")
FILES = (*READ, MANIFEST)
NUMBERS = (True, -1, 0, 1, 2, 2.5, 10**9, 1 << 53, 10**18, 10**400, -1e308, 1e308, math.nan, math.inf)
TEXTS = ("", "load", "$a_{", "<b>", "\0", "\u202e", "../..", "x" * 5000, "1e999")
OTHERS = (None, [], {}, [[]], [None], [-1, 1], ["a", "b"], {"a": 1}, {"": []})
ODD = some.sampled_from((*NUMBERS, *TEXTS, *OTHERS))
ANY = ODD | some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(some.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        some.lists(inner, max_size=4) | some.dictionaries(some.text(some.characters(codec="utf-8"), max_size=8), inner)
    ),
    max_leaves=8,
)


@some.composite
def changed(draw, tree):
    """A document with one value in it that is another one, missing or there twice."""
    if not isinstance(tree, dict | list) or not tree or draw(some.integers(0, 9)) == 0:
        return draw(ANY)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = draw(some.sampled_from(keys))
    what = draw(some.sampled_from(["deeper", "deeper", "deeper", "deeper", "without", "more"]))
    if what == "without":
        return (
            {k: v for k, v in tree.items() if k != key}
            if isinstance(tree, dict)
            else [v for i, v in enumerate(tree) if i != key]
        )
    if what == "more":
        return (
            {**tree, draw(some.text(some.characters(codec="utf-8"), max_size=5)): draw(ANY)}
            if isinstance(tree, dict)
            else tree + tree
        )
    other = draw(changed(tree[key]))
    return {**tree, key: other} if isinstance(tree, dict) else [*tree[:key], other, *tree[key + 1 :]]


def documents(path: Path) -> some.SearchStrategy[bytes]:
    """The contents of a file after a change of one of its values."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return changed(json.loads(text)).map(lambda tree: json.dumps(tree).encode())
    if path.suffix == ".yaml":
        return changed(yaml.safe_load(text)).map(
            lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
        )
    lines = text.splitlines()
    return some.integers(0, len(lines) - 1).flatmap(
        lambda at: changed(json.loads(lines[at])).map(
            lambda tree: "\n".join([*lines[:at], json.dumps(tree), *lines[at + 1 :], ""]).encode()
        )
    )


def damaged(path: Path) -> some.SearchStrategy[bytes]:
    """The contents of a file, of which a part is other bytes, or missing."""
    data = path.read_bytes()
    places = some.integers(0, len(data))
    return some.builds(
        lambda begin, length, other: data[:begin] + other + data[begin + length :],
        places,
        some.integers(0, 40) | places,
        some.binary(max_size=12)
        | some.sampled_from([b"\0" * 100, b"[" * 1000, b'{"a":' * 1000, b"\xff", b"\n", b",", b"-", b"9" * 5000]),
    )


def one_line(read) -> object:
    """What reading gives; None when it is refused in one line."""
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return None


def read_everything(run: Path) -> None:
    """Read a run as every command does."""
    one_line(lambda: read([run]))
    one_line(lambda: describe(choose_window(align_timings(run))))
    one_line(lambda: rundir.read_restarts(run))
    one_line(lambda: load_config(run / rundir.CONFIG))
    one_line(lambda: read_manifest(find_checkpoint(run)))


@pytest.mark.parametrize("contents", [documents, damaged])
@pytest.mark.parametrize("name", FILES)
def test_no_document_is_more_than_one_line_of_trouble(run, comparison, name, contents):
    folder = comparison if name == "comparison.json" else run

    @settings(FIXED, max_examples=30)
    @given(contents(folder / name))
    def reads(data: bytes) -> None:
        (folder / name).write_bytes(data)
        read_everything(folder)

    reads()


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_no_checkpoint_is_more_than_one_line_of_trouble(run, name):
    @settings(FIXED, max_examples=40)
    @given(documents(run / name) if name == MANIFEST else damaged(run / name))
    def loads(data: bytes) -> None:
        (run / name).write_bytes(data)
        one_line(lambda: alrpc.load_run(run).carried)

    loads()


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_can_be_drawn(run, comparison, name):
    folder = comparison if name == "comparison.json" else run

    @settings(FIXED, max_examples=4)
    @given(documents(folder / name))
    def draws(data: bytes) -> None:
        (folder / name).write_bytes(data)
        if (found := one_line(lambda: read([folder]))) is not None:
            make_page(*found).encode()

    draws()
