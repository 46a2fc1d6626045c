"""`alrpc report`: the page in a browser, what it says of runs, and what it refuses."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import LIMIT

import alrpc
from alrpc.analysis.comparison.summary import read_run as figures_of
from alrpc.analysis.comparison.summary import summarise
from alrpc.analysis.quality import inspect_run, write_quality
from alrpc.analysis.report import page as pages
from alrpc.analysis.rundata import read_run
from alrpc.analysis.scores import score_interval, with_interval
from alrpc.cli.report import report
from alrpc.runtime.run import run_sequentially

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
PHONE = 390  # pixels
ODD = '<img src=x onerror=alert(1)> & "it\'s"'
FIGURES = ["associated", "autoencoder", "exits", "time", "memory", "timeline"]
OF_QUALITY = ["quality", "distances", "confusion", "projections"]


def browse(page: Path, folder: Path) -> str:
    """Open a page in headless Chromium; gives its document, after asserting that the browser had nothing to say."""
    if CHROMIUM is None:
        pytest.skip("no chromium")
    command = [CHROMIUM, *FLAGS.split(), "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert shown.returncode == 0, shown.stderr
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    return shown.stdout


ON_A_PHONE = """
const page = document.querySelector('iframe').contentDocument, root = page.documentElement;
const cut = [...page.querySelectorAll('*')].filter(each => each.scrollWidth > each.clientWidth + 1
  && page.defaultView.getComputedStyle(each).overflowX !== 'visible');
const shows = each => each.offsetHeight - each.clientHeight >= 6
  && page.defaultView.getComputedStyle(each).backgroundImage.split('linear-gradient').length === 5;
const named = each => each.closest('figure')?.id || each.textContent.trim().split('\\n')[0];
document.title = JSON.stringify({window: root.clientWidth, page: root.scrollWidth,
  scrolls: cut.filter(shows).map(named), hidden: cut.filter(each => !shows(each)).map(named)});
"""


def on_a_phone(text: str, folder: Path) -> dict:
    """How a page lies in a phone's window, its details opened.

    `window` and `page` are widths in pixels; `scrolls` names what is wider than its place and shows that by a scroll bar which
    stays, and by shadows; `hidden` what does not show it.
    """
    page = html.escape(text.replace("<details", "<details open"))
    frame = f'<iframe style="width:{PHONE}px;height:700px;border:0" srcdoc="{page}"></iframe>'
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<title></title>{frame}<script>onload = () => {{ {ON_A_PHONE} }}</script>")
    return json.loads(html.unescape(re.search(r"<title>(\{.*?\})</title>", browse(wrapper, folder))[1]))


def assert_fits_a_phone(text: str, folder: Path) -> list[str]:
    """Assert that a page is not wider than a phone's window, and that all that scrolls in it shows that; gives its names."""
    found = on_a_phone(text, folder)
    assert PHONE - 30 < found["window"] == found["page"] and found["hidden"] == []
    return found["scrolls"]


def needs_nothing_else(text: str) -> bool:
    return (
        re.findall(r"""(?:src|href|xlink:href|action)=["'](?!#|data:)|url\((?!#|data:)|@import|https?://|<script""", text) == []
    )


def make(*arguments: object) -> str:
    """The page that the command has written."""
    done = CliRunner().invoke(report, [str(argument) for argument in arguments])
    assert done.exit_code == 0 and done.stderr == "", done.output
    return Path(done.stdout.strip()).read_text()


def figures_in(document: str) -> list[str]:
    return re.findall(r'<figure id="([^"]+)"', document)


def text_of(document: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", document))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A run of two epochs in one process; tests copy it."""
    run = tmp_path_factory.mktemp("runs") / "short"
    run_sequentially(alrpc.load_config(None, ["train.epochs=2", "model.widths=[32,32]"]), "short", run, quiet=True)
    return run


def test_a_run_with_a_stage_four_times_as_heavy_as_the_other(commands):
    fields = ["--set", "model.name=own_blocks:build_heavy", "--set", "model.seconds=0.02", "--set", "train.epochs=2"]
    launched = commands.alrpc("launch", "--stages", "2", *fields, "--out", "run", "--quiet")
    assert launched.returncode == 0, launched.stderr
    run = commands.folder / "run"
    before = make(run)
    assert "alrpc inspect" in before and figures_in(before) == [f"run-1-{name}" for name in FIGURES]
    write_quality(run, inspect_run(run, 200, model="own_blocks:build_heavy"))
    text = make(run)
    assert len(text) < 3e6 and needs_nothing_else(text) and list(run.glob("*.partial")) == []
    document = browse(run / "report.html", commands.folder)
    assert figures_in(document) == [f"run-1-{name}" for name in FIGURES + OF_QUALITY]
    assert document.count("<svg") == document.count('<svg viewBox="') == len(FIGURES + OF_QUALITY)
    ids = re.findall(r' id="([^"]+)"', document)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(|href=")#([^")]+)', document)) <= set(ids)
    assert re.search(r"<strong>Bottleneck</strong> stage 2 works \d+% of its time", document)
    assert re.findall(r'<tr class="pointed-out"><th[^>]*>(.*?)</th>', document) == ["stage 2"]
    for row in re.findall(r"<tr[^>]*><th[^>]*>stage \d</th>(.*?)</tr>", document):
        shares = [float(share) for share in re.findall(r">([\d.]+)%<", row)]
        assert sum(shares) == pytest.approx(100, abs=0.5)
    summary = json.loads((run / "summary.json").read_text())
    words = text_of(document)
    for what in (f"{summary['test_accuracy']:.4f}", summary["parameters_sha256"][:8], "own_blocks:build_heavy", "step 46"):
        assert what in words
    low, high = score_interval("accuracy", summary["test_accuracy"], 360)
    assert f"95 %: {low:.3f} to {high:.3f}" in words and "95 % Wilson score interval on 360 test samples" in words
    assert "95 % Wilson score interval on 200 test samples" in words  # of those inspected
    scrolls = assert_fits_a_phone(text, commands.folder)
    assert {"run-1-time", "run-1-timeline", "run-1-projections"} <= set(scrolls) and "run-1-exits" not in scrolls
    assert any(name.startswith("Shares of each stage's time") for name in scrolls)


def test_runs_side_by_side_and_one_that_died(short, tmp_path):
    odd, died = tmp_path / ODD, tmp_path / "died"
    for copy in (odd, died):
        shutil.copytree(short, copy)
    (died / "summary.json").unlink()
    # It went on from step 23, skipped updates, and died in the middle of a line.
    with (died / "metrics.jsonl").open("a") as file:
        file.write('{"event": "start", "time": 5.0}\n')
        again = {"component": 1, "epoch": 2, "step": 46, "associated_loss": None, "autoencoder_loss": 0.25}
        file.write(json.dumps({"event": "losses", "stage": 1, **again, "skipped_updates": 3, "time": 6.5}) + "\n")
        file.write(json.dumps({"event": "evaluation", "epoch": 2, "metric": "accuracy", "exits": [0.5, 0.0625], "time": 7.0}))
        file.write('\n{"event": "stage", "sta')
    cause = {"cause": "stage 1 was killed by SIGKILL", "step": 23, "repeated_steps": 7}
    (died / "logs").mkdir(exist_ok=True)
    (died / "logs" / "restarts.jsonl").write_text(json.dumps(cause) + "\n")
    run = read_run(died)
    first, second = run.curve
    assert second[1:] == (2, [0.5, 0.0625]) and second[0] > first[0] + 2  # the seconds of both parts
    assert run.losses[1][-1] == (46, {"associated": None, "autoencoder": 0.25}) and run.skipped == {1: 3}

    out = tmp_path / "all.html"
    text = make(short, odd, died, "--out", out)
    assert read_run(short).evaluated_samples == 360 and read_run(short).chance == 0.1
    assert with_interval("accuracy", read_run(short).scores[-1], 360) in text
    assert ODD not in text and needs_nothing_else(text) and not (short / "report.html").exists()
    document = browse(out, tmp_path)
    words = text_of(document)
    assert "<img" not in document and ODD in words
    assert [name for name in figures_in(document) if name.startswith("runs-")] == [
        "runs-by-epoch",
        "runs-by-seconds",
        "runs-throughput",
    ]
    assert [f"run-{n}-exits" in document for n in (1, 2, 3)] == [True] * 3
    assert re.search(r"short, <img .* ended with the same parameters, bit for bit", words)
    assert "This run was stopped or died: it has no summary.json." in words
    assert "stage 1 was killed by SIGKILL" in words and "0.0625" in words
    assert any(name.startswith("The runs side by side") for name in assert_fits_a_phone(text, tmp_path))


def test_a_comparison_and_a_page_that_would_be_too_heavy(short, tmp_path, monkeypatch):
    folder = tmp_path / "compared"
    runs = []
    for number, method in enumerate(("al-sequential", "bp"), 1):
        shutil.copytree(short, folder / f"{method}-1")
        runs.append(figures_of(folder / f"{method}-1", method, 1, 0))
        runs[-1]["chosen"] = {"threads": number, "device": "cpu"}
    result = {
        **{"alrpc": "0.1.0", "torch": "2", "machine": {"host": "here", "cores": 2, "processor": "x"}, "stages": 2, "repeat": 1},
        **{"config": alrpc.load_config(None).model_dump(mode="json"), "metric": "accuracy", "goal": 0.5, "runs": runs},
        **{"table": [summarise([run], 0.5, runs[1:]) for run in runs], "failures": ["round 1/1 ddp: <no>"]},
    }
    (folder / "comparison.json").write_text(json.dumps(result))
    document = make(folder)
    names = figures_in(document)
    assert names[:3] == [f"comparison-1-{what}" for what in ("by-epoch", "by-seconds", "throughput")]
    assert {f"run-{n}-{name}" for n in (1, 2) for name in FIGURES} <= set(names)
    words = text_of(document)
    for what in ("al-sequential", "1 process, 2 threads, cpu", "round 1/1 ddp: <no>", f"{runs[0]['final']:.4f}", "× bp"):
        assert what in words

    monkeypatch.setattr(pages, "ROOM", 1)
    light = make(folder)
    assert figures_in(light) == names[:3] and f"alrpc report {folder / 'bp-1'} draws them" in text_of(light)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, None, "run: is not a directory; give that of a run or of a comparison"),
        ("notes.txt", "", "run: is neither a run nor a comparison: it has no config.yaml and no comparison.json"),
        ("metrics.jsonl", "", "run: nothing to report: no losses and no scores in metrics.jsonl yet"),
        ("config.yaml", "[", "config.yaml: not YAML"),
        ("summary.json", '{"engine":', "summary.json: is damaged"),
        ("summary.json", "{}", "summary.json: alrpc: not given, but needed"),
        ("comparison.json", "{}", "comparison.json: alrpc: not given, but needed"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(short, tmp_path, file, content, message):
    run = tmp_path / "run"
    if file == "notes.txt":
        run.mkdir()
    elif file is not None:
        shutil.copytree(short, run)
    if file is not None:
        (run / file).write_text(content)
    refused = CliRunner().invoke(report, [str(run)])
    assert refused.exit_code == (2 if file in (None, "notes.txt") else 1) and refused.stdout == ""
    assert refused.stderr.startswith("alrpc: ") and message in refused.stderr and refused.stderr.count("\n") == 1
    assert list(tmp_path.rglob("report.html*")) == []


def test_a_page_that_cannot_be_written_is_one_line(short, tmp_path):
    refused = CliRunner().invoke(report, [str(short), "--out", str(tmp_path / "absent" / "page.html")])
    assert refused.exit_code == 1 and refused.stderr.count("\n") == 1
    assert "page.html: cannot be written: No such file or directory; give another file with --out" in refused.stderr
