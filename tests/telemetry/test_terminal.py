"""What a run shows, from the events that it tells."""

import io
import re
import time

from rich.console import Console
from rich.text import Text

from alrpc.events import Evaluation, Event, Job, Losses, Ready, StageTimes, Start, Status
from alrpc.telemetry.progress import Progress, StageProgress
from alrpc.telemetry.terminal import BAR, LOOKS, show
from alrpc.timing import STATES


def events(epoch: int) -> list[Event]:
    """The second stage is ahead in telling: its evaluation comes before the first stage's end of epoch."""
    step = 2 * epoch
    first = {**dict.fromkeys(STATES, 0.0), "waiting_to_send": 3.0, "update": 1.0}
    second = {**dict.fromkeys(STATES, 0.0), "forward": 1.0, "backward": 2.0, "waiting_to_receive": 1.0}
    return [
        Losses(2, epoch, step, {"associated": 0.5, "autoencoder": 0.25}, stage=2),
        StageTimes(2, epoch, step, epoch_seconds=2.0, seconds=second, peak_memory=1 << 20),
        Evaluation(epoch, "accuracy", [0.625, 0.75], stage=2),
        Losses(1, epoch, step, {"associated": 0.125, "autoencoder": 0.25}, stage=1),
        StageTimes(1, epoch, step, epoch_seconds=2.0, seconds=first, peak_memory=1 << 20),
    ]


def shown(terminal: bool, quiet: bool = False) -> str:
    progress = Progress("mlp on digits, 2 stages", "pipeline", {1: StageProgress(), 2: StageProgress()}, epochs=2)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=150, height=40, _environ={})
    begun = [*(Ready(n, [n], "cpu", "here") for n in (1, 2)), Job(samples=4, micro_batches=2), Start()]
    with show(progress, quiet, console) as refresh:
        for event in [*begun, *events(1), *events(2)]:
            progress.apply(event)
            refresh(event)
    return console.file.getvalue()


def test_a_pipe_gets_a_line_for_the_job_and_one_for_each_whole_epoch():
    job, *epochs = shown(terminal=False).splitlines()
    assert (
        job
        == "mlp on digits, 2 stages: 4 samples, 2 micro-batches an epoch; components of stage 1: 1 on cpu, stage 2: 2 on cpu"
    )
    assert [line.rpartition("  ")[0] for line in epochs] == [
        f"epoch {epoch}/2  accuracy of exits 0.6250 0.7500  associated losses 0.125 0.5" for epoch in (1, 2)
    ]


def test_a_terminal_sees_where_each_stage_spends_its_time_and_every_component():
    last_frame = Text.from_ansi(shown(terminal=True).rpartition("mlp on digits")[2]).plain
    assert "4/4 steps" in last_frame
    one, other = (re.search(rf"^{number} .* (\d+)% +1 MiB +(\S+)", last_frame, re.M).groups() for number in (1, 2))
    marks = {state: mark for state, (mark, _) in LOOKS.items()}
    assert one == ("25", marks["update"] * (BAR // 4) + marks["waiting_to_send"] * (3 * BAR // 4))
    assert other[0] == "75" and other[1].count(marks["waiting_to_receive"]) == BAR // 4
    for value in ("0.125", "0.5", "0.25", "0.6250", "0.7500", "(epoch 2)"):
        assert value in last_frame


def test_a_first_micro_batch_may_take_its_time():
    progress = Progress("", "pipeline", {1: StageProgress()}, epochs=1, fed=time.monotonic() - 60)
    for step in (0, 0, 1):
        progress.apply(Status(1, step, packet=None, received=0, sent=0, state=None, in_state=0.0, seconds={}, peak_memory=0))
    assert progress.step == 1


def test_quiet_shows_nothing():
    assert shown(terminal=False, quiet=True) == shown(terminal=True, quiet=True) == ""
