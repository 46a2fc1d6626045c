"""Promise 4, for processes that do not die: whatever is frozen, cut off or hung is named within health.timeout.

tests/chaos has those that thaw in time.
"""

import json
import re
import signal
import socket
import time

import psutil
import pytest
from conftest import ALRPC, LIMIT, patience

HOST = re.escape(socket.gethostname())
TIMEOUT = 6
LONG = [
    "launch",
    "--stages",
    "3",
    "--set",
    "train.epochs=5000",
    "--set",
    f"health.timeout={TIMEOUT}",
    "--out",
    "run",
    "--quiet",
]
SHORT = ["launch", "--stages", "2", "--set", "health.timeout=5", "--out", "run", "--quiet"]


def has_trained(commands):
    metrics = commands.folder / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") > 5


@pytest.mark.parametrize("rank", [0, 2])
def test_a_frozen_process_is_named_in_time_and_everything_ends(commands, until, rank):
    process = commands.start(ALRPC, *LONG)
    until(lambda: has_trained(commands))
    commands.workers()[rank].send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    _, message = process.communicate(timeout=LIMIT)
    assert time.monotonic() - frozen < TIMEOUT + patience(5)
    assert process.returncode == 1 and message.count("\n") == 1
    if rank:
        who = rf"stage 2 \(rank 2, host {HOST}\) has not answered for 5 s: it is frozen, or its host or the network is lost"
        assert re.match(rf"alrpc: {who}; last packet: \w+ packet of step \d+, epoch \d+; log: run/logs/stage-2.log", message)
    else:
        assert re.match(rf"alrpc: the coordinator \(rank 0, host {HOST}\) has not been heard of for 5 s: it is frozen", message)
    assert commands.leftovers(patience(5)) == []


def test_what_is_suspended_together_goes_on_together(commands, until):
    """A paused container, a frozen cgroup, a virtual machine that is moved."""
    process = commands.start(ALRPC, *SHORT, "--set", "train.epochs=40")
    until(lambda: has_trained(commands))
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(everyone) >= 5  # the launcher, the fork server, three ranks
    for each in everyone:
        each.suspend()
    assert not (commands.folder / "run" / "summary.json").exists()
    time.sleep(2 * TIMEOUT)
    for each in everyone:
        each.resume()
    _, message = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and message == "", message


def test_data_that_keep_the_interpreters_lock_are_waited_for(commands):
    """The configured time holds while they are read, before a stage knows anything else of the run."""
    done = commands.alrpc(*SHORT, "--set", "data.name=own_blocks:locking_data", "--set", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    stuck = rf"alrpc: the coordinator \(rank 0, host {HOST}\) has not called for [4-7] s, but its process runs"
    assert re.match(stuck, done.stderr) and done.stderr.count("\n") == 1, done.stderr


def test_a_block_that_keeps_the_interpreters_lock_is_named_and_waited_for(commands):
    done = commands.alrpc(*SHORT[:-1], "--set", "model.name=own_blocks:build_locking", "--set", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    named = (
        rf"stage 2 \(rank 2, host {HOST}\) has not answered for [4-7] s: its process runs, but some code in it keeps Python's"
    )
    assert re.search(named, done.stdout), done.stdout
    slow = [
        json.loads(line) for line in (commands.folder / "run" / "metrics.jsonl").read_text().splitlines() if '"slow"' in line
    ]
    assert any(event["stage"] == 2 and event["locked"] for event in slow)


def test_a_hung_loader_is_named(commands):
    options = ["--stages", "2", "--set", f"health.timeout={TIMEOUT}", "--out", "run", "--quiet"]
    began = time.monotonic()
    done = commands.alrpc("launch", *options, "--set", "data.name=own_blocks:hanging")
    assert done.returncode == 1 and time.monotonic() - began < TIMEOUT + patience(20)
    cause = r"hangs: the loader of data has given nothing for 5 s, after \d+ micro-batches"
    assert re.match(rf"alrpc: the coordinator \(rank 0, host {HOST}\) {cause}", done.stderr), done.stderr


def test_a_slow_stage_is_named_and_waited_for(commands):
    options = ["--stages", "2", "--set", f"health.timeout={TIMEOUT - 1}", "--set", "train.epochs=1", "--out", "run"]
    done = commands.alrpc("launch", *options, "--set", "model.name=own_blocks:build_slow")
    assert done.returncode == 0, done.stderr
    named = rf"stage 2 \(rank 2, host {HOST}\) has computed for [45] s on its train packet of step 4, epoch 1; the others wait"
    assert re.search(named, done.stdout), done.stdout
    assert '"event": "slow", "stage": 2' in (commands.folder / "run" / "metrics.jsonl").read_text()
