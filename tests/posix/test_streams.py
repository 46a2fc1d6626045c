"""What is printed where it cannot be: nothing that trains ends by it, and what only prints says so."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ALRPC, LIMIT, PATH, free_port, read_summary

from alrpc.posix import streams

TORCHRUN = str(Path(__file__).parents[2] / "launch" / "torchrun.sh")
SMALL = ["--set", "model.widths=[8,8]", "--set", "train.epochs=2"]
WHERE = {
    "full": '"$@" > /dev/full 2> /dev/full',
    "closed": '"$@" <&- >&- 2>&-',
    "gone": '"$@" > >(exec true) 2> >(exec true)',
}


def output(descriptor: int) -> streams.Output:
    return streams.Output(descriptor, "w", closefd=False)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(streams.Output, "patience", 0.05)


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def test_what_a_full_disk_or_a_closed_reader_does_not_take_is_dropped(pipe):
    with open("/dev/full", "w") as full:
        stream = streams.text_stream(full.fileno(), None)
        print("lost", file=stream)
        assert stream.buffer.raw.error.strerror == "No space left on device"
    os.close(pipe.pop(0))
    gone = output(pipe[0])
    assert gone.write(b"lost") == 4 and isinstance(gone.error, BrokenPipeError)


def test_a_reader_that_pauses_is_not_waited_for_and_reads_on_later(pipe, impatient):
    reader, writer = pipe
    stream = streams.text_stream(writer, None)
    for _ in range(20):
        print("x" * 9999, file=stream)  # more than a pipe holds
    assert stream.buffer.raw.error.strerror == "its reader does not read"
    while len(os.read(reader, 1 << 16)) == 1 << 16:
        pass
    print("here again", file=stream)
    assert os.read(reader, 1 << 16) == b"here again\n"


def test_a_reader_that_is_slow_gets_all_of_what_a_short_command_prints(pipe):
    reader, writer = pipe
    text = "x" * (1 << 18)
    child = os.fork()
    if child == 0:
        print(text, file=streams.text_stream(writer, None), flush=True)
        os._exit(0)
    seen = 0
    while seen < len(text):
        seen += len(os.read(reader, 1 << 12))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("> /dev/full", 1, "alrpc: standard output cannot be written to: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_a_command_that_only_prints_says_so_when_it_cannot(where, code, message):
    done = subprocess.run(["bash", "-c", f'"$0" --version {where}', ALRPC], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (code, message)


def test_a_command_that_only_prints_ends_quietly_without_a_reader(pipe):
    os.close(pipe.pop(0))
    done = subprocess.run([ALRPC, "--version"], stdout=pipe[0], stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("command", [["train"], ["launch", "--stages", "2"]], ids=" ".join)
def test_training_goes_on_and_ends_well_whatever_its_output_is(commands, command, where):
    done = commands.run("bash", "-c", WHERE[where], "bash", ALRPC, *command, *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert read_summary(commands.folder / "run")["epochs"] == 2


@pytest.mark.parametrize(
    "command",
    [
        [ALRPC, "compare", "--methods", "al,bp", "--repeat", "1", "--stages", "2", *SMALL, "--out", "run"],
        [ALRPC, "profile", "--stages", "2", *SMALL, "--out", "run"],
        [ALRPC, "bench", "ceiling", "--stages", "2", "--rounds", "1", "--config", "digits-mlp", "--out", "run"],
        [TORCHRUN, "1", *SMALL, "--out", "run"],
    ],
    ids=["compare", "profile", "bench", "torchrun"],
)
def test_so_does_every_command_that_trains(commands, command):
    done = commands.run("bash", "-c", WHERE["gone"], "bash", *command, PATH=PATH, PORT=free_port())
    assert done.returncode == 0
    assert {"comparison.json", "timeline.png", "result.json", "summary.json"} & {
        path.name for path in (commands.folder / "run").iterdir()
    }


def test_a_live_view_whose_terminal_is_closed_ends_no_training(commands):
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [ALRPC, "launch", "--stages", "2", *SMALL, "--set", "train.epochs=40", "--out", "run"],
        **{"cwd": commands.folder, "stdout": end, "stderr": end, "start_new_session": True},
    )
    try:
        os.close(end)
        seen = b""
        while b"steps" not in seen:
            seen += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(timeout=LIMIT) == 0
    finally:
        process.kill()
        process.wait()
    assert read_summary(commands.folder / "run")["epochs"] == 40
