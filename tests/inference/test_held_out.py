"""What held-out samples tell about exits, against formulas written as loops."""

from itertools import pairwise

import numpy as np
import pytest

from alrpc.inference.calibration import choose
from alrpc.inference.held_out import (
    BINS,
    Costs,
    Outcomes,
    accuracy_by_confidence,
    calibration_error,
    failure_auroc,
    fit_temperature,
    threshold,
)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def samples(random) -> Outcomes:
    """Exits that become better with depth, on samples of which some are harder, with costs as of small networks."""
    hardness, depth = random.random(400), 5
    sure = np.stack([np.clip(1 - hardness / (1 + exit) + random.normal(0, 0.05, 400), 0.1, 1) for exit in range(depth)])
    correct = random.random((depth, 400)) < sure
    costs = Costs(np.array([4.0, 3, 5, 2, 6]), np.array([1.0, 0.5, 9, 0.2, 1]))
    return Outcomes(sure.astype(np.float32), correct, costs)


@pytest.mark.parametrize("planted", [0.3, 1.0, 5.0])
def test_a_planted_temperature_is_recovered(random, planted):
    outputs = random.normal(0, 3 * planted, (20_000, 4))
    labels = (softmax(outputs / planted).cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(outputs, labels) == pytest.approx(planted, rel=0.05)


def test_calibration_error_and_failure_auroc_are_those_of_their_definitions(random):
    sure = random.random(500)
    correct = random.random(500) < sure**2
    error = 0.0
    for number in range(BINS):
        within = [index for index in range(500) if number / BINS < sure[index] <= (number + 1) / BINS]
        if within:
            error += len(within) / 500 * abs(sure[within].mean() - correct[within].mean())
    assert calibration_error(sure, correct) == pytest.approx(error)
    pairs = [(right > wrong) for right in sure[correct] for wrong in sure[~correct]]
    assert failure_auroc(sure, correct) == pytest.approx(sum(pairs) / len(pairs))
    assert failure_auroc(sure, np.ones(500, bool)) is None


def test_a_sample_may_leave_where_held_out_samples_of_similar_confidence_are_right_often_enough(random):
    sure = random.random(60)
    correct = random.random(60) < sure
    order = np.argsort(sure)
    ranked = correct[order].astype(float)
    expected = {  # isotonic regression, by its formula of the largest of smallest means
        index: max(min(ranked[low : high + 1].mean() for high in range(place, 60)) for low in range(place + 1))
        for place, index in enumerate(order)
    }
    fitted = accuracy_by_confidence(sure, correct)
    assert fitted == pytest.approx([expected[index] for index in range(60)])
    for target in (0.0, 0.5, 0.8, 1.0):
        reaching = [sure[index] for index in range(60) if fitted[index] >= target]
        assert threshold(sure, fitted, target) == (min(reaching) if reaching else None)


def test_a_choice_is_worth_what_a_walk_of_each_sample_through_the_exits_gives(samples):
    choices = samples.choices(range(1, 5))
    assert len(choices) > 5
    for choice in choices:
        limits, right, cost, left = dict(zip(choice["exits"], choice["thresholds"], strict=True)), 0, 0.0, []
        for sample in range(400):
            for exit in range(1, 6):
                cost += samples.costs.blocks[exit - 1]
                if exit in limits:
                    cost += samples.costs.exits[exit - 1]
                    if exit == 5 or samples.confidence[exit - 1, sample] >= limits[exit]:
                        right += samples.correct[exit - 1, sample]
                        left.append(exit)
                        break
        assert choice["accuracy"] == pytest.approx(right / 400)
        assert choice["compute"] == pytest.approx(cost / 400 / 21)
        assert choice["leaving"] == pytest.approx([left.count(exit) / 400 for exit in choice["exits"]])


def test_no_choice_is_better_and_cheaper_than_another_and_the_full_path_is_among_them(samples):
    choices = samples.choices(range(1, 5))
    for cheaper, better in pairwise(choices):
        assert cheaper["compute"] < better["compute"] and cheaper["accuracy"] < better["accuracy"]
    full = samples.correct[-1].mean()
    assert choices[-1]["accuracy"] >= full and samples.choices([]) == [
        {"exits": [5], "thresholds": [0.0], "leaving": [1.0], "accuracy": full, "compute": 1.0, "time": None}
    ]


def test_an_exit_that_costs_more_than_it_saves_is_not_tried(samples):
    tried = {exit for choice in samples.choices(range(1, 5)) for exit in choice["exits"]}
    assert 3 not in tried and tried - {5}
    assert samples.choices([3]) == samples.choices([])  # nor if no other may be


def test_a_target_and_a_budget_are_kept_on_the_samples_that_they_were_chosen_by(samples):
    choices, full = samples.choices(range(1, 5)), samples.correct[-1].mean()
    for wanted in (0.8, 0.9, 0.95):
        chosen = choose(choices, full, target_accuracy=wanted)
        assert chosen["accuracy"] >= wanted * full
        assert all(each["accuracy"] < wanted * full for each in choices if each["compute"] < chosen["compute"])
    assert choose(choices, full, target_accuracy=9.0) is choices[-1]
    for budget in (0.4, 0.6, 0.9):
        chosen = choose(choices, full, budget=budget)
        assert chosen["compute"] <= budget
        assert all(each["compute"] > budget for each in choices if each["accuracy"] > chosen["accuracy"])
