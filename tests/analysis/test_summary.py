"""From runs to the table: means, deviations, medians, and the time to a score."""

import math

import pytest

from alrpc.analysis.comparison.summary import best, epoch_seconds, mean_and_deviation, seconds_to, summarise
from alrpc.events import StageTimes


def run(method, repeat, rate, scores):
    curve = [[10.0 * (epoch + 1), epoch + 1, score] for epoch, score in enumerate(scores)]
    return {
        **{"method": method, "repeat": repeat, "metric": "accuracy", "curve": curve, "best": max(scores), "final": scores[-1]},
        **{"epoch_seconds": 100 / rate, "samples_per_second": rate, "idle": 0.1, "chosen": {}, "processes": 1},
        **{"peak_memory_largest": 5, "peak_memory_all": 7, "test_samples": 360},
    }


def test_a_row_has_means_of_scores_and_medians_of_times():
    bp = [run("bp", r, rate, [0.5, 0.9]) for r, rate in ((1, 10.0), (2, 5.0), (3, 10.0))]
    al = [
        run("al", r, rate, scores) for r, rate, scores in ((1, 20.0, [0.8, 0.7]), (2, 15.0, [0.9, 0.9]), (3, 10.0, [0.4, 0.8]))
    ]
    row = summarise(al, 0.8, bp)
    assert row["best_mean"] == pytest.approx((0.8 + 0.9 + 0.8) / 3)
    assert row["best_deviation"] == pytest.approx(0.0577, abs=1e-4)
    assert row["final_mean"] == pytest.approx(0.8)
    assert row["samples_per_second"] == 15
    assert row["speed_over_bp"] == 2  # the median of 2, 3 and 1: each round by itself
    assert row["seconds_to_goal"] == 10  # the median of 10, 10 and 20
    assert summarise(al, 0.95, bp)["seconds_to_goal"] is None
    assert summarise(al, 0.8, [])["speed_over_bp"] is None


def test_an_epoch_takes_what_it_takes_the_slowest_process_in_most_epochs_after_the_first():
    first, second = [9.0, 4.0, 5.0, 6.0], [8.0, 7.0, 5.0, 5.0]  # never the same epoch that is odd
    events = [
        StageTimes(stage, epoch, step=epoch, epoch_seconds=seconds, seconds={}, peak_memory=0)
        for stage, epochs in ((1, first), (2, second))
        for epoch, seconds in enumerate(epochs, 1)
    ]
    assert epoch_seconds(events) == 5.0
    assert epoch_seconds([event for event in events if event.epoch <= 2]) == 7.0
    assert epoch_seconds([event for event in events if event.epoch == 1]) == 9.0


def test_a_lower_error_is_the_better_one():
    assert seconds_to("mse", [[1.0, 1, 0.5], [2.0, 2, 0.2]], 0.3) == 2.0
    assert seconds_to("accuracy", [[1.0, 1, 0.5], [2.0, 2, 0.2]], 0.3) == 1.0


def test_the_best_score_is_a_number_if_there_is_one():
    assert best("mse", [math.nan, 0.5, 0.7]) == best("accuracy", [math.nan, 0.5, 0.3]) == 0.5
    assert math.isnan(best("mse", [math.nan]))


def test_one_run_has_no_deviation():
    assert mean_and_deviation([0.5]) == (0.5, None)
