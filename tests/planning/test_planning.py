"""The best split of components over stages: by brute force the same, within a memory limit, and used by a launch."""

import itertools
import json
import random
import time

import pytest
from conftest import read_summary

from alrpc.errors import UserError
from alrpc.models.graph import split_consecutive
from alrpc.planning.costs import Cost
from alrpc.planning.partition import MOST_EXACT, best_split, predict, split_by_bisection, stage_bytes


def cost(number, seconds, parameters=0, activations=0, packet=0):
    return Cost(number, seconds, parameters, activations, packet)


def every_split(count, stages):
    for cuts in itertools.combinations(range(1, count), stages - 1):
        yield [end - first for first, end in itertools.pairwise((0, *cuts, count))]


@pytest.mark.parametrize("seed", range(20))
def test_no_split_within_the_limit_is_faster(seed):
    draw = random.Random(seed)
    count = draw.randint(1, 8)
    stages, window = draw.randint(1, count), draw.randint(1, 3)
    costs = [cost(n, draw.random(), draw.randint(0, 9), draw.randint(0, 9), draw.randint(0, 9)) for n in range(1, count + 1)]
    limit = draw.choice([None, draw.randint(5, 120)])
    splits = [predict(costs, sizes, window) for sizes in every_split(count, stages)]
    allowed = [split for split in splits if limit is None or max(split.stage_bytes) <= limit]
    if not allowed:
        with pytest.raises(UserError, match="--memory-limit: no split"):
            best_split(costs, stages, window, limit)
        return
    best = best_split(costs, stages, window, limit)
    assert best.step_seconds == pytest.approx(min(split.step_seconds for split in allowed))
    assert sum(best.sizes) == count and len(best.sizes) == stages
    assert limit is None or max(best.stage_bytes) <= limit


def largest_part(costs, sizes):
    """The cost of the most expensive part, added up as both searches do."""
    before = [0.0, *itertools.accumulate(costs)]
    ends = [0, *itertools.accumulate(sizes)]
    return max(before[end] - before[first] for first, end in itertools.pairwise(ends))


@pytest.mark.parametrize("seed", range(200))
def test_bisection_finds_a_split_that_is_exactly_as_good_as_the_exact_one(seed):
    draw = random.Random(seed)
    count = draw.randint(1, 30)
    parts = draw.randint(1, count)
    costs = [draw.choice([0.0, 1.0, draw.random(), 10 * draw.random()]) for _ in range(count)]
    sizes = split_by_bisection(costs, parts)
    assert len(sizes) == parts and sum(sizes) == count and min(sizes) >= 1
    assert largest_part(costs, sizes) == largest_part(costs, split_consecutive(costs, parts))
    assert sizes == split_by_bisection(costs, parts)


def test_bisection_shares_evenly_what_the_slowest_part_leaves_open():
    assert split_by_bisection([1.0] * 12, 4) == [3, 3, 3, 3]
    assert split_by_bisection([9.0] + [1.0] * 8, 3) == [1, 4, 4]


def test_thousands_of_components_are_split_within_seconds_and_within_a_limit_that_their_best_split_keeps():
    draw = random.Random(0)
    costs = [cost(number, draw.random(), parameters=1) for number in range(1, 5001)]
    began = time.process_time()
    best = best_split(costs, 1000, 2)
    assert time.process_time() - began < 20  # the exact search takes hours
    ideal = sum(each.seconds for each in costs) / 1000
    assert ideal <= best.step_seconds < 1.3 * ideal
    assert best_split(costs, 1000, 2, memory_limit=max(best.stage_bytes)) == best


def test_a_limit_that_the_fast_search_breaks_is_kept_by_the_exact_one():
    costs = [cost(number, 1.0, parameters=10 if number <= 3 else 1) for number in range(1, MOST_EXACT + 2)]
    free = best_split(costs, 2, 1)
    limited = best_split(costs, 2, 1, memory_limit=max(free.stage_bytes) - 1)
    assert max(limited.stage_bytes) < max(free.stage_bytes)
    assert limited.step_seconds > free.step_seconds


def test_a_component_four_times_as_heavy_gets_a_stage_of_its_own():
    best = best_split([cost(n, 4.0 if n == 2 else 1.0) for n in range(1, 7)], 3, 2)
    assert best.sizes == [1, 1, 4]
    assert (best.step_seconds, best.efficiency) == (4.0, 9 / 12)


def test_a_stage_holds_one_components_activations_and_the_packets_of_both_its_windows():
    costs = [cost(1, 1, 100, 10, 1), cost(2, 1, 200, 30, 2), cost(3, 1, 300, 20, 3)]
    assert stage_bytes(costs, 1, 3, 2) == 500 + 30 + 2 * (1 + 3)


def test_more_stages_than_components_are_refused():
    with pytest.raises(UserError, match=r"pipeline\.stages: got 3, but the model has 2 components"):
        best_split([cost(1, 1.0), cost(2, 1.0)], 3, 2)


UNEVEN = """
import time
from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.04)
        return x * 1

def build():
    return [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), Slow()), nn.Linear(16, 16)
    ]
"""


def test_the_plan_finds_a_slow_component_and_a_launch_uses_it(commands):
    (commands.folder / "uneven.py").write_text(UNEVEN)
    fields = ["--set", "model.name=uneven:build", "--set", "train.epochs=1", "--set", "data.batch_size=360"]
    planned = commands.alrpc("plan", "--stages", "3", *fields)
    assert planned.returncode == 0, planned.stderr
    assert "--set pipeline.split=[2,1,1]" in planned.stdout  # component 3 has a stage of its own
    launched = commands.alrpc("launch", "--stages", "3", *fields, "--set", "pipeline.split=auto", "--out", "out")
    assert launched.returncode == 0, launched.stderr
    summary = read_summary(commands.folder / "out")
    assert [3] in [stage["components"] for stage in summary["per_stage"]]
    trained = commands.alrpc("train", *fields, "--out", "alone")
    assert trained.returncode == 0, trained.stderr
    assert read_summary(commands.folder / "alone")["parameters_sha256"] == summary["parameters_sha256"]


def test_the_plan_is_printed_as_json(commands):
    planned = commands.alrpc("plan", "--stages", "2", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert [component["number"] for component in plan["components"]] == [1, 2, 3, 4]
    assert plan["even"]["split"] == [2, 2] and plan["best"]["step_seconds"] <= plan["even"]["step_seconds"]
    assert plan["best"]["step_seconds"] == max(plan["best"]["stage_seconds"])


def test_a_limit_that_no_split_keeps_is_refused(commands):
    refused = commands.alrpc("plan", "--stages", "2", "--memory-limit", "1")
    assert refused.returncode == 1 and refused.stderr.startswith("alrpc: --memory-limit: no split into 2 stages")
    assert refused.stderr.count("\n") == 1
