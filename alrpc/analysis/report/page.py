"""The page: its articles, sections and tables, and how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from alrpc import events, rundir
from alrpc.analysis.comparison import table
from alrpc.analysis.comparison.summary import best
from alrpc.analysis.report.article import ALL, Article, Section, Table
from alrpc.analysis.report.chart import GIB, MIB
from alrpc.analysis.report.costs import costs, timeline
from alrpc.analysis.report.early_exits import early_exits
from alrpc.analysis.report.learning import learning
from alrpc.analysis.report.quality import quality
from alrpc.analysis.report.side_by_side import series_of, series_of_runs, side_by_side
from alrpc.analysis.rundata import Comparison, Run, labels, read
from alrpc.analysis.scores import about_interval, score_interval, with_interval
from alrpc.config import flat_fields
from alrpc.errors import UserError
from alrpc.timing import STATES

ROOM = 2_400_000  # characters of figures; runs beyond that have none, so that the page stays below 3 MB
DIGEST = 8  # characters of a SHA-256 that are shown


def write_report(directories: list[Path], out: Path | None = None) -> Path:
    """Write the page about runs and comparisons; an older page stays until the new one is complete.

    Args:
        directories: directories of runs and comparisons, at least one.
        out: the file to write; None for report.html in the first directory.

    Returns:
        The file that was written.

    Raises:
        UserError: naming the directory or file that is missing, damaged, or cannot be written.
    """
    runs, comparisons = read(directories)
    path = out or directories[0] / "report.html"
    text = make_page(runs, comparisons)
    try:
        rundir.write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give another file with --out") from error
    return path


def make_page(runs: list[Run], comparisons: list[Comparison]) -> str:
    """The page's HTML."""
    together = [of_comparison(each, f"comparison-{number}") for number, each in enumerate(comparisons, 1)]
    if len(runs) > 1:
        together.insert(0, of_runs(runs, "runs"))
    every = [*runs, *(run for each in comparisons for run in each.runs)]
    room, alone = ROOM, []
    for number, run in enumerate(every, 1):
        article = of_run(run, f"run-{number}", drawn=True)
        size = sum(len(figure.svg) for section in article.sections for figure in section.figures)
        if size > room:
            article, size = of_run(run, f"run-{number}", drawn=False), 0
        room -= size
        alone.append(article)
    environment = Environment(
        loader=PackageLoader("alrpc.analysis.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    title = alone[0].title if len(alone) == 1 else together[0].title
    now = f"{datetime.now():%-d %B %Y, %H:%M}"
    return environment.get_template("page.html").render(title=title, together=together, alone=alone, now=now)


# ---- one run


def of_run(run: Run, name: str, drawn: bool) -> Article:
    """The article about a run; `drawn`: with figures."""
    notes = []
    if run.summary is None:
        ended = "was stopped or died" if run.engine in events.ENGINES else "is under way, or died"
        state = "is under way" if run.under_way else f"{ended}: it has no summary.json"
        notes.append(("Not ended", f"This run {state}. What follows is what it has written so far"))
    stage, sentence = run.bottleneck()
    if sentence:
        what, _, rest = sentence.rpartition("bottleneck: ")
        notes.append(("Bottleneck" if what or sentence != rest else "Balance", rest))
    if not drawn:
        notes.append(("No figures", f"they would make the page too heavy; alrpc report {run.directory} draws them"))
    sections = [
        Section("Learning", learning(run, name) if drawn else [], [], []),
        _time(run, name, stage, drawn),
        _keeping(run),
        _quality(run, name, drawn),
        *([early_exits(run.calibration, name, drawn)] if run.calibration else []),
    ]
    below = " · ".join(filter(None, (run.name, run.learner)))
    return Article(name, run.title, below, list(_tiles(run)), notes, sections, run.config_text)


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    summary = run.summary or {}
    if tested := run.tested:
        score = tested.exits[-1]
        limits = score_interval(run.metric, score, tested.samples)
        words = [f"95 %: {limits[0]:.3f} to {limits[1]:.3f}"] if limits else []
        words += [f"best {best(run.metric, run.scores):.4f}"] if len(run.scores) > 1 and run.split == "test" else []
        words += [f"of epoch {tested.epoch}"] if run.split == "validation" else []
        yield f"test {run.metric}", f"{score:.4f}", " · ".join(words)
        for name, exits in (tested.metrics or {}).items():
            yield f"test {name}", f"{exits[-1]:.4f}", ""
    if run.split == "validation":
        best_of_all = best(run.metric, run.scores)
        yield f"validation {run.metric}", f"{best_of_all:.4f}", f"the best, of epoch {run.scores.index(best_of_all) + 1}"
    if rate := run.samples_per_second:
        yield "samples/s", f"{rate:,.0f}", "tests included"
    epochs = run.config.get("train", {}).get("epochs", "?")
    done = len(run.curve)
    yield "epochs", f"{done}", f"of {epochs}" if done != epochs else f"{summary['steps']:,} steps" if summary else ""
    components = sum(len(stage.components) for stage in run.stages)
    word = f"{components} components" if components and run.engine in events.ENGINES else ""
    yield "stages" if run.engine == "pipeline" else "processes", str(len(run.stages) or "?"), word
    yield "wall time", _duration(run.wall_seconds), "" if summary else "so far"
    if summary:
        counts = summary["parameters"]
        word = f"and {_short(counts['affiliated'])} that only train" if counts["affiliated"] else ""
        yield "parameters", _short(counts["effective"]), word
        yield "SHA-256 of them", summary["parameters_sha256"][:DIGEST], "the first digits"
        yield "alrpc", summary["alrpc"], f"torch {summary['torch']}"


def _time(run: Run, name: str, worst: int | None, drawn: bool) -> Section:
    figures, lines, tables = costs(run, name) if drawn else [], [], []
    stages = [stage for stage in run.stages if stage.total]
    if stages:
        states = [state for state in STATES if any(stage.seconds[state] for stage in stages)]
        hosts = len({stage.host for stage in stages}) > 1
        heads = [
            "",
            "components",
            "device",
            *(["host"] if hosts else []),
            *(state.replace("_", " ") for state in states),
            "seconds",
        ]
        rows = [
            [
                run.name_of(stage),
                _range(stage.components),
                stage.device,
                *([stage.host] if hosts else []),
                *(f"{stage.seconds[state] / stage.total:.1%}" for state in states),
                f"{stage.total:,.1f}",
            ]
            for stage in stages
        ]
        row = next((place for place, stage in enumerate(stages) if stage.number == worst), None)
        tables.append(Table(heads, rows, "Shares of each stage's time, all epochs, tests included", row))
    else:
        lines.append("No stage has ended an epoch yet: its times and memory are told then.")
    if drawn:
        try:
            figures.append(timeline(run, name))
        except UserError as error:
            lines.append(f"No timeline: {error}")
    return Section("Time and memory", figures, tables, lines)


def _keeping(run: Run) -> Section:
    """The section on checkpoints, restarts and failures."""
    tables, lines = [], []
    if run.checkpoints:
        rows = [[f"{each.step:,}", _size(each.size)] for each in run.checkpoints]
        tables.append(Table(["step", "on disk"], rows, f"Checkpoints kept, of {run.checkpoints_taken:,} taken"))
    else:
        lines.append("No checkpoint was kept.")
    if run.failures:
        tables.append(
            Table(["what could not be written"], [[failure] for failure in run.failures], "Failures to write", words=ALL)
        )
    if run.restarts:
        rows = [[f"{each['step']:,}", f"{each['repeated_steps']:,}", each["cause"]] for each in run.restarts]
        tables.append(Table(["from step", "repeated", "cause"], rows, "Restarts", words=ALL))
    if run.skipped:
        rows = [[str(component), f"{count:,}"] for component, count in run.skipped.items()]
        tables.append(Table(["component", "updates"], rows, "Updates skipped, not finite"))
    if run.slow:
        rows = [[str(each.stage), f"{each.seconds:.0f} s", each.packet] for each in run.slow]
        tables.append(Table(["stage", "computed for", "packet"], rows, "Slow stages", words=ALL))
    if resumed := (run.summary or {}).get("resumed_at_step"):
        lines.append(f"It went on from step {resumed:,}.")
    none = [
        what
        for what, found in (
            ("failures to write", run.failures),
            ("restarts", run.restarts),
            ("skipped updates", run.skipped),
            ("slow stages", run.slow),
        )
        if not found
    ]
    if none:
        lines.append(f"No {', no '.join(none)}.")
    return Section("Checkpoints and restarts", [], tables, lines)


def _quality(run: Run, name: str, drawn: bool) -> Section:
    result = run.quality
    if result is None:
        return Section(
            "Network quality", [], [], [f"Not measured yet: alrpc inspect {run.directory} does that, then report again."]
        )
    metric, samples = result["metric"], result["samples"]
    columns = {"width": "width", metric: f"{metric} of its exit"}
    columns |= {"intra": "intra", "inter": "inter", "ratio": "inter / intra"} if "confusion" in result else {}
    columns = {column: head for column, head in columns.items() if column in result["components"][0]}

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    def cells(component: dict) -> Iterator[str]:
        for column in columns:
            score = column == metric
            yield with_interval(metric, component[column], samples) if score else cell(component[column])

    rows = [[str(each["component"]), *cells(each)] for each in result["components"]]
    caption = f"{samples:,} of {result['test_samples']:,} test samples, step {result['step']:,}"
    caption += f"; [low, high]: {about_interval(samples)}" if metric == "accuracy" else ""
    tables = [Table(["component", *columns.values()], rows, caption)]
    return Section("Network quality", quality(result, name) if drawn else [], tables, [])


# ---- several


def of_runs(runs: list[Run], name: str) -> Article:
    """The article about runs side by side."""
    metric = runs[0].metric
    heads = [
        "",
        "learned by",
        "stages",
        "epochs",
        f"last {metric}",
        f"best {metric}",
        "samples/s",
        "wall time",
        "MiB largest",
        "MiB all",
    ]
    rows, names = [], labels(runs)
    for run, label in zip(runs, names, strict=True):
        last = with_interval(run.metric, run.tested.exits[-1], run.tested.samples) if run.tested else ""
        scores = [last, f"{best(run.metric, run.scores):.4f}" if run.scores else ""]
        sizes = list(run.memory.values())
        memory = [f"{max(sizes) / MIB:,.0f}", f"{sum(sizes) / MIB:,.0f}"] if sizes else ["", ""]
        rate = f"{run.samples_per_second:,.0f}" if run.samples_per_second else ""
        idle = f"{run.idle:.0%}" if run.idle is not None else ""
        digest = run.summary["parameters_sha256"][:DIGEST] if run.summary else "not ended"
        what = [run.learner, str(len(run.stages)), str(len(run.curve))]
        rows.append([label, *what, *scores, rate, _duration(run.wall_seconds), *memory, idle, digest])
    known = metric == "accuracy" and any(run.tested and run.tested.samples for run in runs)
    caption = "The runs side by side" + (f"; [low, high]: {about_interval()}" if known else "")
    if any(run.split == "validation" for run in runs):
        caption += "; with a validation split the best is the best on it, and the last the one on the test split"
    tables = [Table([*heads, "idle", "SHA-256"], rows, caption, words=2)]
    if differing := _differences(runs):
        tables.append(Table(["field", *names], differing, "Where their configurations differ", words=ALL))
    same = [run for run in runs if run.metric == metric]
    lines = [] if len(same) == len(runs) else [f"The curves are of the runs that are tested by {metric}."]
    figures = side_by_side(series_of_runs(same), metric, name)
    sections = [Section("Side by side", figures, tables, lines)]
    return Article(name, f"{len(runs)} runs", "", [], [("Parameters", _equality(runs, names))], sections, "")


def _equality(runs: list[Run], names: list[str]) -> str:
    """A sentence on which runs ended with the same parameters."""
    groups: dict[str, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        if run.summary:
            groups.setdefault(run.summary["parameters_sha256"], []).append(name)
    shared = [alike for alike in groups.values() if len(alike) > 1]
    if not shared:
        return "no two of these runs ended with the same parameters"
    if len(groups) == 1 and len(shared[0]) == len(runs):
        return f"all {len(runs)} runs ended with the same parameters, bit for bit ({next(iter(groups))[:DIGEST]})"
    return "; ".join(f"{', '.join(alike)} ended with the same parameters, bit for bit" for alike in shared)


def _differences(runs: list[Run]) -> list[list[str]]:
    """A row for each field in which the configurations differ."""
    fields = [dict(flat_fields(run.config)) for run in runs]
    names = dict.fromkeys(name for of_run in fields for name in of_run)
    rows = [[name, *(str(of_run.get(name, "")) for of_run in fields)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def of_comparison(comparison: Comparison, name: str) -> Article:
    """The article about a comparison."""
    result = comparison.result
    metric, rows, machine = result["metric"], result["table"], result["machine"]
    heads = ["", *table.heads(rows, metric, result["goal"])[1:]]
    about = table.about_scores(rows, metric)
    caption = f"The methods: scores are means, what is timed is a median{f'; {about}' if about else ''}"
    tables = [Table(heads, [table.cells(row, metric) for row in rows], caption)]
    chosen = [list(line.partition(": ")[::2]) for line in table.choices(rows)]
    tables.append(Table(["", "processes, and what trying told"], chosen, "How each method was run", words=ALL))
    if result["failures"]:
        tables.append(Table(["failure"], [[failure] for failure in result["failures"]], "Runs that failed", words=ALL))
    figures = side_by_side(series_of(comparison), metric, name)
    sections = [Section("Methods side by side", figures, tables, [])]
    config = result["config"]
    stages = f"{result['stages']} {'stage' if result['stages'] == 1 else 'stages'}"
    title = f"{config['model']['name']} on {config['data']['name']}, {stages}: {len(rows)} methods"
    tiles = [
        ("methods", str(len(rows)), f"{len(result['runs'])} runs"),
        ("rounds", str(result["repeat"]), "each with another seed"),
        ("epochs", str(config.get("train", {}).get("epochs", "?")), ""),
        ("cores", str(machine["cores"]), machine["processor"]),
        ("alrpc", result["alrpc"], f"torch {result['torch']}"),
    ]
    return Article(name, title, f"{rundir.run_name(comparison.directory)} · on {machine['host']}", tiles, [], sections, "")


# ---- numbers as text


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _short(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.1f} M"


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]}–{numbers[-1]}" if len(numbers) > 1 else "".join(map(str, numbers))
