"""A file of a run that is damaged is told in one line with its name, soon, and without much memory."""

import json
import os
import re
import resource
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from alrpc.analysis.aligned import align_timings
from alrpc.analysis.rundata import read
from alrpc.cli.main import main
from alrpc.config import load_config
from alrpc.errors import Advice, UserError
from alrpc.reading.documents import parse_yaml

DEEP = 100_000
NAMES = (
    "summary.json",
    "quality.json",
    "calibration.json",
    "comparison.json",
    "config.yaml",
    "metrics.jsonl",
    "timings.jsonl",
    "logs/restarts.jsonl",
)
DAMAGES = {
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "40 GB": lambda path: path.touch() or os.truncate(path, 40 << 30),
    "not UTF-8": lambda path: path.write_bytes(b'{"a":\n"\xe4"}\n'),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "a number": lambda path: path.write_text("1\n"),
    "an empty object": lambda path: path.write_text("{}\n"),
}
OF_DOCUMENTS = {
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "nested": lambda path: path.write_text("[" * DEEP + "]" * DEEP),
    "digits": lambda path: path.write_text("[" + "1" * DEEP + "]"),
    "half": lambda path: path.write_text('{"model": {"na'),
}


def refused(paths: list[Path]) -> str:
    """The line with which reading is refused."""
    began, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        read(paths)
    assert time.monotonic() - began < 30  # seconds; a limit for hangs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # KiB
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("name", "damage"),  # a line that is no JSON was cut by a full disk, and is passed over
    [(name, damage) for name in NAMES for damage in (DAMAGES if name.endswith(".jsonl") else {**DAMAGES, **OF_DOCUMENTS})],
)
def test_a_damaged_file_is_named(run, comparison, name, damage):
    path = (comparison if name == "comparison.json" else run) / name
    path.unlink()
    {**DAMAGES, **OF_DOCUMENTS}[damage](path)
    if not path.is_file() and name in ("comparison.json", "config.yaml"):
        assert "it has no config.yaml and no comparison.json" in refused([path.parent])
    else:
        assert str(path) in refused([path.parents[1] if name.startswith("logs") else path.parent])


@pytest.mark.parametrize(
    ("name", "line", "change", "message"),
    [
        ("metrics.jsonl", 2, {"component": "first"}, "component: got 'first'; it should be a valid integer"),
        ("metrics.jsonl", 2, {"step": -1}, "step: got -1; it should be greater than or equal to 0"),
        (
            "metrics.jsonl",
            2,
            {"associated_loss": 1e300},
            "losses.associated: got 1e+300; it should be a finite number of float32",
        ),
        ("metrics.jsonl", 2, {"time": None}, "time: got None; it must be seconds since the run began"),
        ("metrics.jsonl", 2, {"event": 7}, "each line must be an object with the name of an event"),
        ("timings.jsonl", 1, {"engine": ["pipeline"]}, "engine: got ['pipeline']; it should be a valid string"),
        ("timings.jsonl", 3, {"entries": [["asleep", 0, 0]]}, "entries.0.0: got 'asleep'; it should be 'forward', "),
        ("timings.jsonl", 3, {"packets": [["train", 1, 0, 5, 10**6]]}, "packets: each must have entries of its own"),
        ("timings.jsonl", 3, {"end": -5}, "entries: their times must ascend, up to the end"),
        (
            "logs/restarts.jsonl",
            1,
            {"step": 10**400},
            "step: got 100000000000000000...0000000000000000000; it should be less than",
        ),
    ],
)
def test_a_line_is_named_with_its_field(run, name, line, change, message):
    lines = (run / name).read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **change})
    (run / name).write_text("\n".join(lines) + "\n")
    with_line = refused([run])
    assert f"{name}:{line}: " in with_line and message in with_line


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("summary.json", {"exits": []}, "exits: got []; "),
        ("summary.json", {"samples_per_second": "fast"}, "samples_per_second: got 'fast'; "),
        ("summary.json", {"per_stage": [{"stage": 1}]}, "per_stage.0.components: not given, but needed (and 3 more)"),
        ("quality.json", {"labels": [99] * 30}, "labels: got 99, but there are 10 classes"),
        ("quality.json", {"confusion": [[1]]}, "confusion: it must have a row and a column for each of the 10 classes"),
        ("quality.json", {"projection": "umap"}, "projection: got 'umap'; it should be 'pca' or 'tsne'"),
        ("quality.json", {"metric": "speed"}, "components.0.got None; "),
        ("comparison.json", {"runs": [{"method": "al", "directory": "../../etc"}]}, "runs.0.directory: got '../../etc'; "),
        ("comparison.json", {"machine": 5}, "machine: got 5; "),
    ],
)
def test_a_field_is_named(run, comparison, name, change, message):
    folder = comparison if name == "comparison.json" else run
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    assert f"{folder / name}: {message}" in refused([folder])


def test_lines_that_a_full_disk_has_cut_and_keys_of_another_alrpc_are_no_obstacle(run):
    (before,), _ = read([run])
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        '{"event": "los\n' + "\0" * 100 + "\n" + text.replace('{"event"', '{"more": [1], "event"') + '{"event"'
    )
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "more": {"a": 1}}))
    with pytest.warns(Advice, match=r"metrics\.jsonl:1 \(and 1 more\): no JSON, as when a full disk has cut a line; left out$"):
        (after,), _ = read([run])
    assert (after.losses, after.curve) == (before.losses, before.curve) and after.summary["more"] == {"a": 1}


@pytest.mark.parametrize(
    ("command", "names"),
    [("report", ["metrics.jsonl", "timings.jsonl", "logs/restarts.jsonl"]), ("timeline", ["timings.jsonl"])],
)
def test_a_line_that_was_cut_is_told(run, command, names):
    told = set()
    for name in names:
        with (run / name).open("a") as file:
            file.write('{"event": "los{"event": "losses"}\n')
        lines = len((run / name).read_text().splitlines())
        told.add(f"{run / name}:{lines}: no JSON, as when a full disk has cut a line; left out")
    with pytest.warns(Advice) as warned:
        assert CliRunner().invoke(main, [command, str(run)]).exit_code == 0
    assert {str(each.message) for each in warned} == told


def test_names_and_classes_are_drawn_as_they_are_and_scores_that_are_not_finite_leave_gaps(run):
    odd = "a$b_{c <b>$ x\u0000"
    quality = json.loads((run / "quality.json").read_text())
    quality |= {"classes": [f"{odd}{number}" for number in range(10)], "run": odd}
    quality["components"][0] |= {"accuracy": float("nan"), "ratio": float("inf")}
    (run / "quality.json").write_text(json.dumps(quality))
    lines = (run / "metrics.jsonl").read_text().replace('"exits": [', '"exits": [NaN, -Infinity, ')
    (run / "metrics.jsonl").write_text(lines)
    timings = (run / "timings.jsonl").read_text()
    (run / "timings.jsonl").write_text(timings.replace('"title": "', '"title": "$<script>\\\\frac{$'))
    assert CliRunner().invoke(main, ["report", str(run)]).exit_code == 0
    page = (run / "report.html").read_text()
    assert "a$b_{c &lt;b&gt;$" in page and "$&lt;script&gt;" in page and "<script" not in page
    done = CliRunner().invoke(main, ["timeline", str(run)])
    assert done.exit_code == 0, done.output


def test_a_comparison_whose_configuration_lacks_what_is_not_needed_is_drawn(comparison):
    result = json.loads((comparison / "comparison.json").read_text())
    del result["config"]["train"]
    (comparison / "comparison.json").write_text(json.dumps(result))
    done = CliRunner().invoke(main, ["report", str(comparison)])
    assert done.exit_code == 0, done.output


def test_a_run_of_a_million_steps_is_thinned_as_it_is_read(run):
    line = '{"event": "losses", "component": %d, "epoch": 1, "step": %d, "associated_loss": 0.5, "skipped_updates": 1, "time": 9}\n'
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(line % (component, step) for step in range(100, 15_100) for component in (1, 2))
    (found,), _ = read([run])
    assert found.skipped == {1: 15_000, 2: 15_000}
    assert all(1000 <= len(points) <= 2000 and points[-1][0] > 15_000 for points in found.losses.values())


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)),
        "a: &a {x: 1}\n"
        + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)),
        *(
            "[" * DEEP,
            "{a: " * 50_000,
            "- " * DEEP,
            "&a [*a]",
            "[" + "1, " * 50_000 + "]",
            "a: !!bool maybe",
            "a: !!timestamp soon",
        ),
        *("a: " + "9" * DEEP, "a: 2001-99-99", "a: \0", "'a", "a: !!python/object:os.system {}"),
    ],
    ids=range(14),
)
def test_a_configuration_that_is_no_yaml_or_too_much_of_it_is_refused(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not YAML: [^\n]+$"):
        load_config(path)
    assert time.monotonic() - began < 30  # seconds; a limit for hangs


def test_aliases_and_merged_keys_are_read(tmp_path):
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_timings_of_stages_that_are_not_there_are_refused(run):
    path = run / "timings.jsonl"
    path.write_text(path.read_text().replace('"event": "ready", "stage": 1', '"event": "ready", "stage": 3'))
    with pytest.raises(UserError, match=r"timings.jsonl: is damaged: it must tell of stages 1, 2, … without a gap; got \[3\]"):
        align_timings(run)
