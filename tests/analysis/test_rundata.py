"""A run directory that alrpc 0.1 has written is read as one of today's.

run-of-0.1 is what `alrpc launch --stages 2 --set train.epochs=2 --set train.log_every=10` left, without logs and checkpoints.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest

from alrpc.analysis.aligned import align_timings
from alrpc.analysis.report.page import write_report
from alrpc.analysis.rundata import Run, read_run
from alrpc.analysis.timeline import choose_window
from alrpc.timing import STATES

OLD = Path(__file__).parent / "run-of-0.1"


@pytest.fixture(scope="module")
def run() -> Run:
    return read_run(OLD)


def test_losses_are_known_by_component_and_name(run):
    assert run.loss_names == ["associated", "autoencoder"]
    assert list(run.losses) == [1, 2, 3, 4]
    assert all([step for step, _ in rows] == [10, 20, 23, 30, 40, 46] for rows in run.losses.values())
    assert run.losses[1][0] == (10, {"associated": 0.03356226179748774, "autoencoder": 0.08929690569639206})
    assert run.losses[4][-1] == (46, {"associated": 0.0015353435107196371, "autoencoder": 0.004385168198496103})


def test_scores_are_known_by_epoch_and_by_seconds_since_the_first_micro_batch(run):
    assert run.metric == "accuracy" and run.scores == [pytest.approx(0.0972, abs=1e-4), 0.1]
    assert [(round(seconds, 3), epoch) for seconds, epoch, _ in run.curve] == [(0.318, 1), (0.523, 2)]
    assert run.curve[-1][2] == run.summary["exits"]


def test_time_memory_and_checkpoints_are_known_by_stage_with_a_summary_and_without(run, tmp_path):
    assert (run.title, run.engine) == ("mlp on digits, 2 stages", "pipeline")
    assert [(stage.number, stage.components, stage.device, stage.host) for stage in run.stages] == [
        (1, [1, 2], "cpu", "host"),
        (2, [3, 4], "cpu", "host"),
    ]
    for stage, told in zip(run.stages, run.summary["per_stage"], strict=True):
        assert stage.seconds == {state: told[f"seconds_{state}"] for state in STATES} and stage.total > 0.3
    assert run.memory == {"coordinator": 720658432, "stage 1": 744525824, "stage 2": 746655744}
    assert run.checkpoints_taken == 2 and run.samples_per_second == pytest.approx(5004.46, abs=0.01)

    died = tmp_path / "died"
    shutil.copytree(OLD, died)
    (died / "summary.json").unlink()
    so_far = read_run(died)
    assert (so_far.title, so_far.engine, so_far.losses, so_far.curve) == (run.title, run.engine, run.losses, run.curve)
    for stage, final in zip(so_far.stages, run.stages, strict=True):
        assert (stage.number, stage.components, stage.device, stage.host) == (final.number, final.components, "cpu", "host")
        assert stage.seconds["backward"] == final.seconds["backward"] and 0 < stage.total <= final.total


def test_how_a_run_learned_is_told_by_its_objective_or_by_the_name_of_the_baseline(run):
    assert run.learner == "associated"  # the configurations of 0.1 name no objective
    other = {**run.config, "objective": {"name": "contrastive"}}
    told = [dataclasses.replace(run, engine=engine, config=other).learner for engine in ("pipeline", "sequential", "gpipe")]
    assert told == ["contrastive", "contrastive, sequential", "gpipe"]


def test_the_spans_of_every_stage_are_found_and_no_packet_arrives_before_it_was_sent(run):
    timings = align_timings(OLD)
    assert (timings.title, timings.engine, sorted(timings.stages)) == (run.title, run.engine, [1, 2])
    assert {block.stage for block in timings.blocks} == {0, 1, 2}
    for number in (0, 1, 2):
        spans = [span for block in timings.blocks if block.stage == number for span in block.spans]
        packets = [each for block in timings.blocks if block.stage == number for each in block.packets]
        assert [each.step for each in packets if each.kind == "train"] == list(range(46))
        assert all(span.end > span.begin for span in spans)
    for state in ("forward", "backward", "update"):
        parts = {span.part for block in timings.blocks for span in block.spans if span.state == state}
        assert parts == {1, 2, 3, 4}
    sent = {(block.stage, each.number): each.sent for block in timings.blocks for each in block.packets}
    for block in timings.blocks:
        if block.stage:
            assert all(each.ready >= sent[block.stage - 1, each.number] for each in block.packets)
    assert sorted(choose_window(timings).lanes) == [0, 1, 2]


def test_the_report_is_made_with_all_its_figures(tmp_path):
    page = write_report([OLD], tmp_path / "report.html").read_text()
    for name in ("associated", "autoencoder", "exits", "time", "memory", "timeline"):
        assert f'<figure id="run-1-{name}"' in page
    assert "0.1000" in page and "1372b873" in page and "No timeline" not in page
