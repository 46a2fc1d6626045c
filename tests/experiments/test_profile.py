"""`alrpc profile`: one trace of all processes, that a trace viewer can trust."""

import gzip
import json
from collections import defaultdict

import pytest
from conftest import Commands

STAGES, STEPS = 4, 5


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("profiled"))
    done = commands.alrpc("profile", "--stages", str(STAGES), "--steps", str(STEPS), "--methods", "al,1f1b", "--out", "out")
    assert done.returncode == 0, done.stderr
    return commands.folder / "out", done.stdout


def events_of(folder, method):
    with gzip.open(folder / method / "trace.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


@pytest.fixture(params=["al", "1f1b"])
def events(request, profiled):
    return events_of(profiled[0], request.param)


def slices(events):
    """By process and track."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    return tracks


def test_every_process_and_every_track_has_a_name(events):
    named = {kind: {(e["pid"], e["tid"]) for e in events if e["name"] == kind} for kind in ("process_name", "thread_name")}
    tracks = slices(events)
    assert len(tracks) >= 2 * STAGES
    assert set(tracks) <= named["thread_name"]
    assert {(process, 0) for process, _ in tracks} <= named["process_name"]


def test_slices_of_a_track_lie_within_or_beside_each_other(events):
    for track in slices(events).values():
        open_until = []
        for event in sorted(track, key=lambda event: (event["ts"], -event["dur"])):
            assert event["dur"] >= 0
            while open_until and open_until[-1] <= event["ts"] + 1e-3:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1] + 1e-2, event
            open_until.append(end)


def test_every_stage_records_the_same_micro_batches_in_order(profiled):
    tracks = slices(events_of(profiled[0], "al"))
    of_stages = []
    for stage in range(1, STAGES + 1):
        forwards = sorted((e for e in tracks[stage, 1] if e["name"] == "forward"), key=lambda event: event["ts"])
        of_stages.append([event["args"]["step"] for event in forwards])
    assert of_stages == [list(range(of_stages[0][0], of_stages[0][0] + STEPS))] * STAGES
    fed = [event["name"] for event in tracks[0, 1] if event["name"].startswith("step ")]
    assert fed == [f"step {step}" for step in of_stages[0]]


def test_every_arrow_ends_later_in_the_next_stage(profiled):
    flows = defaultdict(dict)
    for event in events_of(profiled[0], "al"):
        if event["ph"] in "sf":
            flows[event["id"]][event["ph"]] = event
    assert len(flows) == STAGES * STEPS  # one into each stage for each micro-batch
    for flow in flows.values():
        assert flow["f"]["ts"] > flow["s"]["ts"] and flow["f"]["pid"] == flow["s"]["pid"] + 1


def test_operators_lie_within_the_phase_that_ran_them(profiled):
    for stage, tracks in ((stage, slices(events_of(profiled[0], "al"))) for stage in range(1, STAGES + 1)):
        backwards = [event for event in tracks[stage, 1] if event["name"] == "backward"]
        steps = [e for track, of_track in tracks.items() if track[0] == stage for e in of_track if "AddmmBackward" in e["name"]]
        assert steps
        for each in steps:
            assert any(b["ts"] - 100 <= each["ts"] <= b["ts"] + b["dur"] + 100 for b in backwards), each


def test_a_picture_and_the_bubbles_are_left(profiled):
    folder, printed = profiled
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (folder / "timeline.svg").read_text()
    assert printed.count("\nbubble ") == 2 and "trace.json.gz" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "al,sgd"], "--methods: got 'sgd'; give some of al,"),
        (["--set", "data.name=mnist", "--set", "data.root=nowhere"], "data.root: nowhere is not a directory"),
        (["--stages", "9"], "pipeline.stages: got 9, but the model has 4 components"),
    ],
)
def test_what_cannot_be_profiled_is_refused_and_nothing_is_written(commands, options, message):
    refused = commands.alrpc("profile", "--out", "out", *options)
    assert refused.returncode == 2 and refused.stderr.startswith(f"alrpc: {message}") and refused.stderr.count("\n") == 1
    assert not list(commands.folder.iterdir())
