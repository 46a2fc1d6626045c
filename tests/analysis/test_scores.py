"""Intervals of scores, and axes on which no score is lost, however bad."""

import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from alrpc.analysis.comparison import plots, table
from alrpc.analysis.comparison.summary import summarise
from alrpc.analysis.quality_plots import draw as draw_quality
from alrpc.analysis.scores import limit_scores, mean_interval, score_interval, with_interval


@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (355, 360, 0.9679, 0.9941)],
)
def test_wilson_intervals_of_accuracies(right, samples, low, high):
    """The first is the example of Newcombe, Statistics in Medicine 17, 1998, table I."""
    assert score_interval("accuracy", right / samples, samples) == pytest.approx((low, high), abs=5e-5)


def test_scores_without_an_interval():
    assert score_interval("mse", 0.5, 10) is score_interval("accuracy", 0.5, None) is None
    assert with_interval("mse", 0.5, 10) == "0.5000" and with_interval("accuracy", 0.5, 100) == "0.5000 [0.404, 0.596]"


def test_the_interval_of_a_mean_grows_as_rounds_are_few():
    assert mean_interval(0.01, 3) == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert mean_interval(0.01, 2) > mean_interval(0.01, 3) > mean_interval(0.01, 30)


@pytest.mark.parametrize(
    ("scores", "is_marked"), [([0.04, 0.9], True), ([0.02, 0.05], True), ([0.12, 0.9], True), ([0.93, 0.98], False)]
)
def test_a_score_below_chance_is_on_the_axis_and_so_is_chance(scores, is_marked):
    axes = Figure().subplots()
    axes.plot(scores)
    limit_scores(axes, scores, 0.1, "black")
    bottom, top = axes.get_ylim()
    assert bottom < min(scores) and max(scores) < top
    marks = [text.get_text() for text in axes.texts]
    assert marks == (["chance 0.1"] if is_marked else []) and (bottom < 0.1 < top) == is_marked


def figures_of(monkeypatch, draw) -> list[Figure]:
    """The figures that are saved meanwhile."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))
    draw()
    return saved


def run(method, repeat, scores):
    curve = [[float(epoch), epoch, score] for epoch, score in enumerate(scores, 1)]
    return {
        **{"method": method, "repeat": repeat, "metric": "accuracy", "curve": curve, "best": max(scores), "final": scores[-1]},
        **{"epoch_seconds": 1.0, "samples_per_second": 10.0, "idle": 0.1, "chosen": {}, "processes": 1},
        **{"peak_memory_largest": 5, "peak_memory_all": 7, "test_samples": 360, "chance": 0.1},
    }


def test_the_table_and_the_picture_of_a_comparison_have_intervals(monkeypatch, tmp_path):
    al, bp = [run("al", repeat, [0.06, 0.8 + repeat / 100]) for repeat in (1, 2, 3)], [run("bp", 1, [0.5, 0.9861])]
    rows = [summarise(runs, 0.5, []) for runs in (al, bp)]
    cells = [table.cells(row, "accuracy")[1:3] for row in rows]
    assert cells == [["0.8200 ± 0.0248"] * 2, ["0.9861", "0.9861 [0.968, 0.994]"]]
    about = table.about_scores(rows, "accuracy")
    assert "95 % t interval of the mean over the rounds" in about and "95 % Wilson score interval on 360 test samples" in about
    old = {name: value for name, value in rows[1].items() if name != "test_samples"}  # a comparison.json of alrpc 0.1
    assert table.cells(old, "accuracy")[2] == "0.9861"

    accuracy, _ = figures_of(monkeypatch, lambda: plots.draw([*al, *bp], ["al", "bp"], "title", tmp_path))
    (axes,) = accuracy.axes
    assert axes.get_ylim()[0] < 0.06 and [text.get_text() for text in axes.texts] == ["chance 0.1"]
    (band,) = axes.collections  # of the method with a single round
    assert colors.to_hex(band.get_facecolor()[0]) == plots.LOOKS["bp"][0]
    limits = score_interval("accuracy", 0.9861, 360)
    assert set(limits) <= {y for _, y in band.get_paths()[0].vertices} and "95 % Wilson score interval" in axes.get_title()


def test_distances_have_an_axis_of_their_own_and_exits_their_intervals(monkeypatch, tmp_path):
    found = {"width": 4, "explained": 0.5, "coordinates": [[0.0, 0.0], [1.0, 1.0]]}
    components = [
        {"component": 1, "accuracy": 0.5, "intra": 0.6, "inter": 1.1, "ratio": 1.8, **found},
        {"component": 2, "accuracy": 0.0, "intra": 0.1, "inter": 1.4, "ratio": 14.0, **found},
    ]
    result = {
        **{"run": "x", "step": 1, "samples": 2, "test_samples": 2, "metric": "accuracy", "components": components},
        **{"projection": "pca", "classes": [0, 1], "labels": [0, 1], "confusion": [[1, 0], [1, 0]]},
    }
    (figure,) = figures_of(monkeypatch, lambda: draw_quality(result, tmp_path / "quality.png"))
    of = {axes.get_ylabel() or axes.get_title(): axes for axes in figure.axes}
    distances, ratio, exits = (of[name] for name in ("distances of the activations", "inter / intra", "test accuracy"))
    assert [list(line.get_ydata()) for line in distances.lines] == [[1.1, 1.4], [0.6, 0.1]] and distances.get_ylim()[1] < 2
    assert [list(line.get_ydata()) for line in ratio.lines] == [[1.8, 14.0]]
    ends = [path.vertices[:, 1].tolist() for path in exits.collections[0].get_paths()]
    assert ends == [list(score_interval("accuracy", score, 2)) for score in (0.5, 0.0)]
    assert exits.get_ylim()[0] < 0 and "chance 0.5" in [text.get_text() for text in exits.texts]
