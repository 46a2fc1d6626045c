"""The section on early exits, as `alrpc calibrate` has measured them: accuracy against compute and against wall time."""

from __future__ import annotations

from matplotlib.figure import Figure

from alrpc.analysis.contents import Calibration
from alrpc.analysis.report.article import Section, Table
from alrpc.analysis.report.chart import HEIGHT, SMALL, PageFigure, frame_axes
from alrpc.analysis.report.svg import ACCENT, SOFT, css, draw_svg
from alrpc.analysis.scores import limit_scores

Point = tuple[float, float]
HEADS = ("exit", "accuracy", "temperature", "ECE", "calibrated", "failure AUROC", "compute")


def early_exits(calibration: Calibration, name: str, drawn: bool) -> Section:
    """The section about a run's calibration; `drawn`: with figures."""
    choices, alone = calibration["choices"], _alone(calibration)
    figures = []
    if drawn:
        by_compute = [(each["compute"], each["accuracy"]) for each in choices]
        by_time = [(each["time"], each["accuracy"]) for each in choices if each["time"] is not None]
        figures = [_curve(f"{name}-compute", "operations", by_compute, alone)]
        figures += [_curve(f"{name}-time", "wall time", by_time, [])] if by_time else []
    rows = [
        [
            str(each["exit"]),
            f"{each['accuracy']:.4f}",
            f"{each['temperature']:.3g}",
            f"{each['ece']:.4f}",
            f"{each['ece_calibrated']:.4f}",
            "" if each["failure_auroc"] is None else f"{each['failure_auroc']:.3f}",
            f"{compute:.1%}",
        ]
        for each, (compute, _) in zip(calibration["exits"], alone, strict=True)
    ]
    of = f"{calibration['samples']:,} {calibration['split']} samples of {calibration['data']}, step {calibration['step']:,}"
    caption = f"{of}; compute: operations of the exit alone, as a share of the full path's"
    return Section("Early exits", figures, [Table(list(HEADS), rows, caption)], [])


def _alone(calibration: Calibration) -> list[Point]:
    """For each exit, the operations of an answer by it alone, as a share of the full path's, and its accuracy."""
    exits = calibration["exits"]
    full = sum(each["block_flops"] for each in exits) + exits[-1]["exit_flops"]
    points, blocks = [], 0.0
    for each in exits:
        blocks += each["block_flops"]
        points.append(((blocks + each["exit_flops"]) / full if full else 0.0, each["accuracy"]))
    return points


def _curve(name: str, what: str, choices: list[Point], alone: list[Point]) -> PageFigure:
    """The accuracy of the choices of early exits by their share of the full path's operations or time; and that of single exits."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if alone:
            axes.plot(*zip(*alone, strict=True), color=SOFT, linestyle="none", marker="o", markersize=5)
        axes.plot(*zip(*sorted(choices), strict=True), color=ACCENT, marker="o", markersize=3)
        limit_scores(axes, [accuracy for _, accuracy in choices], None, SOFT)
        axes.set_xlim(0, 1.05 * max(1.0, *(share for share, _ in choices)))
        frame_axes(axes, f"share of the full path's {what}")

    title = f"Accuracy by {what}"
    legend = [(css(ACCENT), "early exits"), *([(css(SOFT), "each exit alone, for all samples")] if alone else [])]
    return PageFigure(name, title, draw_svg(name, f"{title} of early exits", (SMALL, HEIGHT), draw), 1, legend)
