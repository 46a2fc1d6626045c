"""`alrpc bench`: what it measures is what happened, and what it writes can be read."""

import json
import os

import pytest

from alrpc.errors import UserError
from alrpc.events import Round
from alrpc.experiments.bench.measure import check_steady, pair_up, summarise
from alrpc.experiments.bench.rounds import at_the_ends, steady_state
from alrpc.timing import STATES


def test_ceiling_of_a_small_network(commands):
    options = ("--config", "digits-mlp", "--stages", "2", "--steps", "100", "--rounds", "2", "--json", "ceiling.json")
    done = commands.alrpc("bench", "ceiling", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((commands.folder / "ceiling.json").read_text())
    assert len(result["rounds"]) == 2 and sorted(result["rounds"])[0] <= result["efficiency"] <= sorted(result["rounds"])[1]
    assert f"pipeline / ceiling: {result['efficiency']:.4f}" in done.stdout
    assert len(result["stages"]) == 2
    for stage in result["stages"]:
        states = sum(stage[f"seconds_{state}"] for state in STATES)
        assert states == pytest.approx(stage["seconds_per_step"], rel=0.1) and stage["seconds_testing"] == 0
    # stage 1 receives images and labels, stage 2 activations and targets
    received = [stage["bytes_per_second"] / stage["packets_per_second"] for stage in result["stages"]]
    assert received == pytest.approx([64 * (64 * 4 + 8), 64 * (256 + 128) * 4])


def test_hops_sleep_what_they_are_told_and_a_peer_beside_them(commands):
    slow = ("--delay-ms", "1", "--window", "3") if os.geteuid() == 0 else ()  # hosts of their own need root
    options = ("--stages", "2", "--stage-ms", "10", "--message-mb", "0.5", "--rounds", "1", "--peer", "pipedream", *slow)
    done = commands.alrpc("bench", "hops", *options, "--json", "hops.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((commands.folder / "hops.json").read_text())
    assert "SIMULATED" in done.stdout and result["simulated"] is True
    assert bool(slow) == ("links of 1 ms each way, no limit of rate, window 3" in done.stdout)
    assert 0 < result["efficiency"] <= 1.001 and len(result["rounds"]) == 1
    assert all(stage["seconds_computing"] >= 0.01 for stage in result["stages"])
    assert result["stages"][1]["bytes_per_second"] / result["stages"][1]["packets_per_second"] == pytest.approx(2**19, rel=0.01)
    peer = result["peers"]["pipedream"]
    for figure in (peer, peer["memory_kept"]):
        assert 0 < figure["efficiency"] <= 1.001 and figure["theoretical_efficiency"] == 1
        assert figure["throughput_ratio"] == pytest.approx(result["steps_per_second"] / figure["steps_per_second"])
        assert len(figure["throughput_ratios"]) == 3 and sorted(figure["throughput_ratios"])[1] == figure["throughput_ratio"]


def test_scaling_from_one_process_to_as_many_stages_as_there_are_cores(commands):
    options = ("--config", "digits-mlp", "--steps", "4", "--rounds", "1", "--out", "out", "--json")
    done = commands.alrpc("bench", "scaling", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # and nothing else
    assert result == json.loads((commands.folder / "out" / "result.json").read_text())
    cores = len(os.sched_getaffinity(0))
    assert next(iter(result["stages"])) == "1" and max(map(int, result["stages"])) == min(cores, result["components"])
    for stage in result["stages"].values():
        assert stage["speedup"] == pytest.approx(stage["samples_per_second"] / result["sequential_samples_per_second"])
    assert (commands.folder / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ceiling", "--stages", "99"], "pipeline.stages: got 99, but the model has 9 components"),
        (["ceiling", "--config", "nothing"], "--config: no file nothing"),
        (["hops", "--json", "nowhere/hops.json"], "--json: cannot write nowhere/hops.json"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_written(commands, options, message):
    refused = commands.alrpc("bench", *options)
    assert refused.returncode == 2 and refused.stderr.startswith(f"alrpc: {message}") and refused.stderr.count("\n") == 1
    assert list(commands.folder.iterdir()) == []


def told(number, stage, kind, seconds, began=0.0, ended=0.0):
    states = {**dict.fromkeys(STATES, 0.0), "computing": seconds}
    return {
        **{"round": number, "stage": stage, "kind": kind, "steps": 10, "seconds": seconds, "cpu_seconds": seconds / 2},
        **{"began": began, "ended": ended, "states": states, "packet_bytes": 100},
    }


def test_each_round_is_held_against_the_ceilings_around_it_and_the_slowest_stage_counts():
    events = []
    for number, (pipeline, ceiling) in enumerate([(99.0, 0.5), (2.0, 1.5), (5.0, 2.5), (4.0, 3.5)]):  # the first warms up
        events += [told(number, 1, "pipeline", pipeline / 2, 1.0, 5.0), told(number, 2, "pipeline", pipeline, 1.5, 7.0)]
        events += [told(number, 1, "ceiling", ceiling / 2), told(number, 2, "ceiling", ceiling)]
    result = summarise(pair_up(events))
    assert result["rounds"] == pytest.approx([0.5, 0.4, 0.75])
    assert result["efficiency"] == pytest.approx(0.5)
    assert result["steps_per_second"] == pytest.approx(10 / 4)
    assert (result["fill_seconds"], result["drain_seconds"]) == (0.5, 2.0)
    assert [stage["seconds_per_step"] for stage in result["stages"]] == pytest.approx([0.2, 0.4])


def test_only_what_happens_while_every_stage_works_counts():
    def marks(moments):
        return [{"moment": moment, "cpu": moment / 2, "computing": moment / 4} for moment in moments]

    stages = [
        Round(2, 1, "pipeline", marks([3.0, 4.0, 5.0, 7.0, 8.0, 9.0]), packet_bytes=100),  # 4.0: its first step is done
        Round(1, 1, "pipeline", marks([0.0, 1.0, 2.0, 4.5, 6.5, 8.5]), packet_bytes=100),  # 8.5: it has done its last
    ]
    first, second = steady_state(stages)
    assert (first["stage"], first["steps"], first["seconds"], first["began"], first["ended"]) == (1, 2, 4.0, 0.0, 8.5)
    assert (second["stage"], second["steps"], second["seconds"]) == (2, 3, 4.0)
    assert (second["cpu_seconds"], second["states"]) == (2.0, {"computing": 1.0})


def test_a_round_in_which_the_stages_never_worked_at_one_time_is_refused():
    def marks(*moments):
        return [{"moment": moment, "cpu": 0.0, "computing": 0.0} for moment in moments]

    apart = [
        Round(1, 0, "ceiling", marks(0.0, 1.0, 2.0), packet_bytes=1),
        Round(2, 0, "ceiling", marks(2.5, 3.0, 3.5), packet_bytes=1),
    ]
    with pytest.raises(UserError, match=r"steps: got 2, .* \(round 0 \(ceiling\)\); measure more steps"):
        check_steady(steady_state(apart), steps=2)
    together = [
        Round(1, 0, "ceiling", marks(0.0, 1.0, 2.0), packet_bytes=1),
        Round(2, 0, "ceiling", marks(0.0, 1.0, 2.0), packet_bytes=1),
    ]
    check_steady(steady_state(together), steps=2)


def test_a_round_leaves_room_for_as_many_steps_as_a_stage_can_run_ahead():
    assert at_the_ends(stages=1, window=2) == 1
    assert at_the_ends(stages=8, window=2) == 8 + 7 * 5
