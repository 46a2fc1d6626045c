"""What a run shows, from the events that it tells."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from alrpc.events import Evaluation, Event, Job, Losses, Ready, StageTimes, Start, Status
from alrpc.telemetry.progress import Progress, StageProgress
from alrpc.telemetry.terminal import BAR, LEAST_BAR, LOOKS, show
from alrpc.timing import STATES

MARKS = {state: mark for state, (mark, _) in LOOKS.items()}
EXITS = {1: [0.625, 0.25], 2: [0.625, 0.75]}
ABOUT = "deep exits begin at chance because of this and that"


def events(epoch: int) -> list[Event]:
    """The second stage is ahead in telling: its evaluation comes before the first stage's end of epoch."""
    step = 2 * epoch
    first = {**dict.fromkeys(STATES, 0.0), "waiting_to_send": 3.0, "update": 1.0}
    second = {**dict.fromkeys(STATES, 0.0), "forward": 1.0, "backward": 2.0, "waiting_to_receive": 1.0}
    return [
        Losses(2, epoch, step, {"associated": 0.5, "autoencoder": 0.25}, stage=2),
        StageTimes(2, epoch, step, epoch_seconds=2.0, seconds=second, peak_memory=1 << 20),
        Evaluation(epoch, "accuracy", EXITS[epoch], stage=2, chance=0.25, about_exits=ABOUT if epoch == 1 else ""),
        Losses(1, epoch, step, {"associated": 0.125, "autoencoder": 0.25}, stage=1),
        StageTimes(1, epoch, step, epoch_seconds=2.0, seconds=first, peak_memory=1 << 20),
    ]


def shown(terminal: bool, quiet: bool = False, width: int = 150, epochs: int = 2) -> str:
    progress = Progress("mlp on digits, 2 stages", "pipeline", {1: StageProgress(), 2: StageProgress()}, epochs=2, window=2)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=40, _environ={"NO_COLOR": "1"})
    begun = [*(Ready(n, [n], "cpu", "here") for n in (1, 2)), Job(samples=4, micro_batches=2), Start()]
    with show(progress, quiet, console) as refresh:
        for event in [*begun, *(event for epoch in range(1, epochs + 1) for event in events(epoch))]:
            progress.apply(event)
            refresh(event)
    return console.file.getvalue()


def test_a_pipe_gets_a_line_for_the_job_and_one_for_each_whole_epoch():
    job, first, about, second = shown(terminal=False).splitlines()
    assert (
        job
        == "mlp on digits, 2 stages: 4 samples, 2 micro-batches an epoch; components of stage 1: 1 on cpu, stage 2: 2 on cpu"
    )
    assert [line.rpartition("  ")[0] for line in (first, second)] == [
        f"epoch {epoch}/2  accuracy of exits 0.6250 {last}  associated losses 0.125 0.5"
        for epoch, last in ((1, "0.2500"), (2, "0.7500"))
    ]
    assert about == ABOUT


def test_a_terminal_sees_where_each_stage_spends_its_time_and_every_component():
    last_frame = frame(150)
    assert "4/4 steps" in last_frame
    one, other = (re.search(rf"^{number} .* (\d+)% +1 MiB +(\S+)", last_frame, re.M).groups() for number in (1, 2))
    assert one == ("25", MARKS["update"] * (BAR // 4) + MARKS["waiting_to_send"] * (3 * BAR // 4))
    assert other[0] == "75" and other[1].count(MARKS["waiting_to_receive"]) == BAR // 4
    for value in ("0.125", "0.5", "0.25", "0.6250", "0.7500", "(epoch 2)"):
        assert value in last_frame


def test_marks_differ_without_colours_and_are_plain_ascii():
    assert len(set(MARKS.values())) == len(MARKS) == len(STATES) and frame(150).isascii()
    legend = {f"{MARKS[state]} {state.replace('_', ' ')}" for state in ("forward", "backward", "update", "waiting_to_send")}
    assert all(each in frame(150) for each in legend)


@pytest.mark.parametrize("width", [40, 60, 80, 110])
def test_on_a_narrow_terminal_the_bars_are_shorter_and_no_line_is_cut_or_wrapped(width):
    lines = frame(width).splitlines()
    assert max(map(len, lines)) <= width and "\u2026" not in "".join(lines)
    one, other = (re.search(rf"^{number} .* (\d+)% .*?(\S+)$", "\n".join(map(str.rstrip, lines)), re.M) for number in (1, 2))
    bars = one[2], other[2]
    assert len(bars[0]) == len(bars[1]) and LEAST_BAR <= len(bars[0]) <= BAR
    update, send = (bars[0].count(MARKS[state]) / len(bars[0]) for state in ("update", "waiting_to_send"))
    assert (one[1], update, send) == ("25", pytest.approx(0.25, abs=0.03), pytest.approx(0.75, abs=0.03))
    assert "0.6250" in "".join(lines) and "4/4 steps" in "".join(lines)


def test_why_deep_exits_begin_at_chance_is_told_while_they_are_there():
    assert ABOUT in frame(150, epochs=1) and ABOUT not in frame(150, epochs=2)


def frame(width: int, epochs: int = 2) -> str:
    """The last frame of the live view."""
    return Text.from_ansi("mlp on digits" + shown(True, width=width, epochs=epochs).rpartition("mlp on digits")[2]).plain


def test_a_first_micro_batch_may_take_its_time():
    progress = Progress("", "pipeline", {1: StageProgress()}, epochs=1, window=2, fed=time.monotonic() - 60)
    for step in (0, 0, 1):
        progress.apply(Status(1, step, packet=None, received=0, sent=0, state=None, in_state=0.0, seconds={}, peak_memory=0))
    assert progress.step == 1


def test_quiet_shows_nothing():
    assert shown(terminal=False, quiet=True) == shown(terminal=True, quiet=True) == ""
