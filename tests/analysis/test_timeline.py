"""What is made of the moments that a run has left: spans on one clock, shares, a picture, the bottleneck."""

import json

import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from alrpc.analysis.aligned import align_timings, offset_at
from alrpc.analysis.stage_costs import of_run
from alrpc.analysis.timeline import LOOKS, choose_window, draw, draw_lanes, legend
from alrpc.cli.main import main
from alrpc.errors import UserError
from alrpc.telemetry.bottleneck import find_bottleneck, find_slow_link
from alrpc.timing import STATES

STEP = 1000  # µs
SHIFT = 500.0  # seconds that the second stage's clock is ahead


def write(run, *events):
    run.mkdir(exist_ok=True)
    (run / "timings.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "mom')
    return run


def block(stage, origin, work, steps=64):
    """A stage that works so many µs of each 1000, and is one step behind the stage before."""
    packets, entries = [], []
    for step in range(steps):
        begin = (step + stage) * STEP
        entries += [("waiting_to_receive", 0, begin), ("forward", stage, begin + STEP - work)]
        entries += [("waiting_to_send", 0, begin + STEP - 10), ("handling", 0, begin + STEP - 10)]
        packets.append(("train", 1, step, begin + STEP - work, 4 * step + 1))
    end = (steps + stage) * STEP
    return {
        "event": "moments",
        "stage": stage,
        "block": 0,
        "origin": origin,
        "packets": packets,
        "entries": entries,
        "end": end,
    }


@pytest.fixture
def run(tmp_path):
    ready = [{"event": "ready", "stage": n, "components": [2 * n - 1, 2 * n], "device": "cpu", "host": "here"} for n in (1, 2)]
    clock = {"event": "clock", "stage": 2, "at": 100.0, "offset": SHIFT + 0.01, "uncertainty": 0.02}  # not quite right
    title = {"event": "run", "title": "mlp on digits", "engine": "pipeline", "stages": 2}
    return write(tmp_path / "run", title, *ready, clock, block(1, 100.0, 250), block(2, 100.0 + SHIFT, 990))


def test_moments_of_all_stages_are_on_one_clock_and_no_packet_is_there_before_it_was_sent(run):
    first, second = align_timings(run).blocks
    assert first.begin == pytest.approx(100.001) and second.begin == pytest.approx(100.002, abs=0.0005)
    assert all(there.ready >= here.sent for here, there in zip(first.packets, second.packets, strict=True))
    assert [each.step for each in second.packets] == list(range(64)) and second.packets[0].sent is not None


def test_the_table_is_printed_as_json(run):
    done = CliRunner().invoke(main, ["timeline", str(run), "--json"])
    printed = json.loads(done.stdout)
    assert printed["pictures"] == [str(run / "timeline.png"), str(run / "timeline.svg")]
    (shown,) = printed["runs"]
    assert (shown["run"], shown["engine"], shown["bottleneck"]) == (str(run), "pipeline", 2)
    assert [stage["components"] for stage in shown["per_stage"]] == [[1, 2], [3, 4]]
    for stage, work in zip(shown["per_stage"], (0.24, 0.98), strict=True):
        assert sum(stage[f"seconds_{state}"] for state in STATES) == pytest.approx(shown["seconds"])
        assert stage["work"] == pytest.approx(work, abs=0.02)
    assert shown["bubble"] == pytest.approx(1 - (0.24 + 0.98) / 2, abs=0.02)


def test_shares_add_up_to_the_time_that_is_shown_and_the_stage_that_works_most_is_named(run):
    window = choose_window(align_timings(run), steps=10)
    assert window.seconds == pytest.approx(0.01)
    for stage in (1, 2):
        assert sum(window.seconds_of(stage).values()) == pytest.approx(window.seconds)
    assert window.bubble() == pytest.approx(1 - (0.25 + 0.99) / 2, abs=0.01)
    stage, what = window.bottleneck()
    assert stage == 2 and what.startswith("bottleneck: stage 2 works 99% of its time, the other 25%") and "alrpc plan" in what


def test_a_simulation_takes_from_a_run_what_its_stages_have_worked_until_they_sent_and_in_all(run):
    costs = of_run(run)
    assert costs.seconds == pytest.approx([0.00025, 0.00099]) and costs.ahead == pytest.approx([0.00024, 0.00098])
    assert costs.jitter == pytest.approx(0, abs=1e-6)
    done = CliRunner().invoke(main, ["simulate", "--from", str(run), "--json"])
    assert json.loads(done.stdout)["methods"]["al"]["packets_per_second"] == pytest.approx(1 / 0.00099, rel=1e-3)
    text = (run / "timings.jsonl").read_text()
    (run / "timings.jsonl").write_text(text.replace('"pipeline"', '"gpipe"'))
    with pytest.raises(UserError, match="is a run of the engine gpipe; give one of a pipeline on CPUs, or --stage-ms"):
        of_run(run)


def test_on_a_gpu_its_own_moments_count(tmp_path, run):
    events = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()[:-1]]
    events[-1]["device"] = [
        ("backward", 2, 1000 * n + 500, 1000 * n + 1250) for n in range(60)
    ]  # half of a step behind, 750 µs
    timings = align_timings(write(tmp_path / "other", *events))
    window = choose_window(timings, steps=10)
    assert window.work(2) == pytest.approx(0.75, abs=0.01) and window.bubble() == pytest.approx(0.5, abs=0.01)
    draw([window], [tmp_path / "both.png"])
    assert (tmp_path / "both.png").stat().st_size > 5000


def with_a_coordinator(run):
    """The run, its coordinator waiting to send, and a stage of two components that waits a little to send."""
    title, *others, one, other = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()[:-1]]
    feeding = block(0, 100.0, 990)
    feeding["entries"] = [("waiting_to_send" if state == "forward" else state, 0, at) for state, _, at in feeding["entries"]]
    entries = []
    for state, part, at in one["entries"]:
        entries += [(state, part, at + 5 * (state == "handling"))] + [(state, 2, at + 100)] * (state == "forward")
    one["entries"] = entries
    one["packets"] = [(*packet, 5 * packet[2] + 1) for *packet, _ in one["packets"]]
    return write(run, title, *others, feeding, one, other)


def test_back_pressure_is_a_warning_in_a_stage_and_none_in_the_coordinator(run):
    window = choose_window(align_timings(with_a_coordinator(run)), steps=4)
    axes = Figure().subplots()
    draw_lanes(window, axes, 1000, window.seconds)
    lanes = {}
    for bars in axes.collections:
        for path in bars.get_paths():
            lanes.setdefault(round(path.vertices[:4, 1].mean()), set()).add(to_hex(bars.get_facecolor()[0]))
    assert LOOKS["waiting_to_send"] not in lanes[0] and LOOKS["waiting_to_send"] in lanes[1]
    meanings = {meaning: colour for colour, meaning in legend([window])}
    assert meanings["coordinator: window full"] in lanes[0] and meanings["waiting to send"] == LOOKS["waiting_to_send"]


def test_bars_of_two_components_in_one_stage_have_different_numbers(run):
    window = choose_window(align_timings(with_a_coordinator(run)), step=20, steps=2)
    axes = Figure().subplots()
    draw_lanes(window, axes, 1000, window.seconds)
    numbers = {text.get_text() for text in axes.texts}
    assert {"20·1", "20·2"} <= numbers and "20" not in numbers


def test_a_window_begins_with_the_step_asked_for_and_says_which_there_are(run):
    timings = align_timings(run)
    window = choose_window(timings, step=20, steps=3)
    assert window.labels[1, window.lanes[1][0].packet] == "20"
    with pytest.raises(UserError, match="--step: the moments of step 99 were not kept; those of 0 to 63 were"):
        choose_window(timings, step=99)


def test_an_offset_drifts_from_one_estimate_to_the_next():
    estimates = [(0.0, 100.0), (10.0, 102.0)]
    assert offset_at(50.0, estimates) == 100.0 and offset_at(1000.0, estimates) == 102.0
    assert offset_at(106.0, estimates) == 101.0
    assert offset_at(106.0, []) == 0.0


def seconds(**states):
    return {**dict.fromkeys(STATES, 0.0), **states}


@pytest.mark.parametrize(
    ("of_stages", "stage", "what"),
    [
        ([seconds(forward=9, update=1), seconds(forward=9.5, waiting_to_receive=0.5)], None, "about equally busy"),
        ([seconds(forward=2, waiting_to_send=8), seconds(forward=10)], 2, "stage 2 works 100% of its time, the other 20%"),
        ([seconds(forward=3, waiting_to_receive=7), seconds(forward=3, waiting_to_receive=7)], None, "the loader of data"),
        ([seconds(forward=5, waiting_to_send=5), seconds(forward=5, waiting_to_receive=5)], None, "from stage 1 to stage 2"),
        ([seconds(forward=7, waiting_to_send=1), seconds(forward=7, waiting_to_receive=1)], None, "about equally busy"),
        ([seconds(forward=5), seconds()], None, ""),
    ],
)
def test_what_holds_a_pipeline_up_is_told(of_stages, stage, what):
    found, told = find_bottleneck(dict(enumerate(of_stages, 1)), {1: [1, 2], 2: [3]})
    assert found == stage and what in told and bool(what) == bool(told)


def test_a_link_whose_round_trip_the_window_does_not_cover_is_told_with_the_window_that_does():
    waits = {1: seconds(forward=2.0, waiting_to_receive=3.1), 2: seconds(forward=1.0, waiting_to_receive=4.1)}  # of 100 steps
    trips = {1: 0.001, 2: 0.1}
    told = find_slow_link(waits, 100, trips, 2)
    assert "the link to stage 2; its round trip takes 100 ms" in told and told.endswith(
        "set pipeline.window=6"
    )  # 100 / 20, and one
    behind = {**waits, 3: waits[2]}  # another stage on the host of stage 2
    assert "the link to stage 2; its round trip takes 100 ms" in find_slow_link(behind, 100, {**trips, 3: 0.1002}, 2)
    assert find_slow_link(waits, 100, trips, 8) == ""  # then something else holds it up
    assert find_slow_link({1: seconds(forward=5.0), 2: waits[2]}, 100, trips, 2) == ""  # stage 1 does
    assert find_slow_link(waits, 5, trips, 2) == find_slow_link(waits, 100, {}, 2) == ""  # too early


def test_what_has_left_no_moments_is_refused(tmp_path, commands):
    with pytest.raises(UserError, match=r"no timings\.jsonl in it; give the directory of a run"):
        align_timings(tmp_path)
    with pytest.raises(UserError, match="no moments in it; a run leaves them after 64 packets"):
        align_timings(write(tmp_path / "young"))
    refused = commands.alrpc("timeline", str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_the_picture_of_a_run_with_a_heavy_stage_names_it(commands):
    fields = ("--set", "model.name=own_blocks:build_uneven", "--set", "train.epochs=4", "--quiet")
    launched = commands.alrpc("launch", "--stages", "3", *fields, "--out", "run")
    assert launched.returncode == 0, launched.stderr
    drawn = commands.alrpc("timeline", "run")
    assert drawn.returncode == 0, drawn.stderr
    assert "bottleneck: stage 2 works" in drawn.stdout
    run = commands.folder / "run"
    assert (run / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "bottleneck: stage 2 works" in (run / "timeline.svg").read_text()
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    began, ended = (next(event["time"] for event in events if event["event"] == kind) for kind in ("start", "coordinator"))
    for stage in json.loads((run / "summary.json").read_text())["per_stage"]:
        assert sum(stage[f"seconds_{state}"] for state in STATES) == pytest.approx(
            ended - began, rel=0.02, abs=0.4
        )  # beginning and end are heard of late
