"""Plots of a comparison: score against time, and throughput."""

from __future__ import annotations

import statistics
from pathlib import Path
from textwrap import fill

from alrpc.analysis.drawable import plain
from alrpc.analysis.scores import about_interval, bounds, limit_scores

WIDTH, HEIGHT, DOTS = 8, 4.5, 130  # inches, inches, pixels an inch
LOOKS = {  # colour-blind safe, the same in every plot
    "al": ("#0072b2", "o"),
    "al-sequential": ("#56b4e9", "s"),
    "bp": ("#d55e00", "v"),
    "layer-placed": ("#cc79a7", "^"),
    "gpipe": ("#009e73", "D"),
    "1f1b": ("#e69f00", "P"),
    "pipedream": ("#882255", "<"),
    "pipedream-2bw": ("#332288", ">"),
    "ddp": ("#555555", "X"),
}


OTHERS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#882255", "#999933", "#332288", "#44aa99")
MARKERS = ("o", "s", "D", "P", "^", "<", ">", "p", "h")


def look(method: str, place: int) -> tuple[str, str]:
    """Colour and marker of a method, or of an objective in this place among what is compared."""
    return LOOKS.get(method) or (OTHERS[place % len(OTHERS)], MARKERS[place % len(MARKERS)])


def draw(runs: list[dict], methods: list[str], title: str, directory: Path) -> None:
    """Write accuracy.png (score against time) and throughput.png (samples per second) into a directory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    of_method = {method: [run for run in runs if run["method"] == method] for method in methods}
    of_method = {method: found for method, found in of_method.items() if found}
    metric, split, title = runs[0]["metric"], runs[0].get("split", "test"), plain(title)

    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    ends, about = [], {"mean, and each round faintly"} if any(len(found) > 1 for found in of_method.values()) else set()
    for place, (method, found) in enumerate(of_method.items()):
        colour, marker = look(method, place)
        for run in found:
            axes.plot([p[0] for p in run["curve"]], [p[2] for p in run["curve"]], color=colour, alpha=0.25, linewidth=1)
        points = list(zip(*(run["curve"] for run in found), strict=False))  # by epoch, of those that all rounds have
        seconds = [statistics.fmean(point[0] for point in of_epoch) for of_epoch in points]
        scores = [statistics.fmean(point[2] for point in of_epoch) for of_epoch in points]
        axes.plot(seconds, scores, color=colour, marker=marker, markersize=4.5, linewidth=1.8, label=method)
        ends += [point[2] for run in found for point in run["curve"]]
        if len(found) == 1 and (limits := bounds(metric, scores, found[0][f"{split}_samples"])):
            axes.fill_between(seconds, *limits, color=colour, alpha=0.15, linewidth=0)
            ends += [end for limit in limits for end in limit]
            about.add(f"band: {about_interval(found[0][f'{split}_samples'])}")
    limit_scores(axes, ends, runs[0]["chance"], "#555555")
    axes.set(xlabel="seconds since the first micro-batch, tests included", ylabel=f"{split} {metric}", xlim=(0, None))
    axes.set_title("\n".join([title, *sorted(about)]))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(directory / "accuracy.png", dpi=DOTS)
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    for place, (method, found) in enumerate(of_method.items()):
        rates = [run["samples_per_second"] for run in found]
        bar = axes.bar(place, statistics.median(rates), color=look(method, place)[0], alpha=0.8, width=0.7)
        axes.bar_label(bar, fmt="{:,.0f}", padding=8)
        axes.scatter([place] * len(rates), rates, color="black", s=12, zorder=3)
    axes.set_xticks(range(len(of_method)), [fill(method, 16) for method in of_method], fontsize=10 if len(of_method) < 8 else 7)
    axes.set(ylabel="training samples a second", title=f"{title}: median, and each round as a dot")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "throughput.png", dpi=DOTS)
    pyplot.close(figure)
