"""The protocol of failure: every timer of it, who speaks first, and how a failing process tells and ends.

what happens                      who notices first        what follows
a stage raises                    the stage                it reports Failure and lives on for EXIT_DELAY; the coordinator waits
                                                           FAILURE_WINDOW for failures of earlier stages, and names the earliest
a process is killed               the launcher's agent     it ends the others at once and names that one; torchrun does so too
... and its host with it          a broken connection      the coordinator waits BLAME_DELAY, so that whoever knows the cause
                                                           speaks first, and then names the stage that was lost first
a stage is frozen, or cut off     the coordinator          its call times out after silence_limit; named after FAILURE_WINDOW
the coordinator is frozen         each stage               no call for silence_limit: it leaves the cause and kills the coordinator
the loader of data hangs          the coordinator          nothing read for silence_limit: the run ends
a link loses packets              the coordinator          sent, and waited for, for silence_limit: the run ends
a stage computes for long         the coordinator          it is named as slow, and waited for
a neighbour is lost               a stage                  it waits NEIGHBOUR_EXIT_DELAY to be ended, then ends by itself
the launcher is killed            each process             within PARENT_CHECK it ends; the coordinator says so
the coordinator itself raises     the coordinator          it leaves the cause for the launcher, and ends

The order FAILURE_WINDOW < BLAME_DELAY < EXIT_DELAY < NEIGHBOUR_EXIT_DELAY is the protocol: a cause has been heard before a
consequence is reported, and reported before those who wait for it end by themselves.

This module imports nothing heavy, so that a process can fail well before torch is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

# ---- timers, in seconds

POLL_TIMEOUT = 0.5  # of a long poll. One call to each stage is always outstanding, so a broken connection surfaces at once
POLL_PAUSE = 0.05  # between two looks at the outstanding calls
FAILURE_WINDOW = 0.5  # between a reported failure and its message, for failures of earlier stages
BLAME_DELAY = 3.0  # between a lost connection and its message: whoever knows the cause speaks first
EXIT_DELAY = 5.0  # that a failed stage lives on, until the coordinator has heard why
NEIGHBOUR_EXIT_DELAY = 6.0  # that a stage which lost its neighbour waits to be ended, before it ends by itself
SHUTDOWN_TIMEOUT = 5  # between the agent's SIGTERM to the processes of a failed run and its SIGKILL
AGENT_INTERVAL = 0.1  # between two looks of the agent at its processes
PARENT_CHECK = 0.5  # between two looks at whether the launcher is there
HEARTBEAT_CHECK = 1.0  # between two looks at when the coordinator last called
JOIN_TIMEOUT = 180.0  # that a process waits for the others to start
PRUNE_TIMEOUT = 60.0  # that a stage may take to remove files
P2P_TIMEOUT = 7 * 86_400.0  # of a send or receive: a slow neighbour is waited for; the control plane notices a dead one
SILENCE_SHARE = 0.8  # of health.timeout, after which silence counts: the rest is for ending the others and for saying so

TERMINAL = os.dup(2)  # standard error as it was; later it is the log


def silence_limit(timeout: float) -> float:
    """Seconds of silence after which a process counts as lost, so that all is over within health.timeout."""
    return SILENCE_SHARE * timeout


class PeerLost(Exception):
    """The connection to a neighbouring rank broke: the consequence of a failure, not its cause."""


class Disconnected(Exception):
    """The control plane broke while it was joined or left: the consequence of a failure, not its cause."""


class StageLost(Exception):
    """A stage does not answer."""

    def __init__(self, stage: int, reason: str, silent: bool = False, when: float | None = None):
        super().__init__(reason)
        self.stage = stage
        self.silent = silent
        """Whether it has not answered in time; otherwise its connection broke."""
        self.when = when or time.monotonic()


def describe_failure(stage: int, host: str, cause: str, packet: str, log: str) -> str:
    """The message that names a stage, its host, the cause, its last packet and its log."""
    return f"stage {stage} (rank {stage}, host {host}) {cause}; last packet: {packet}; log: {log}"


# ---- how a process tells, and ends


def write_error_file(message: str, code: int) -> None:
    """Leave the cause of a failure, and the exit code that follows, where torch's elastic agent and the launcher look for it.

    Without a disk to leave it on, it goes to the terminal.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        tree = {"message": message, "timestamp": int(time.time()), "code": code}
        try:
            Path(path).write_text(json.dumps(tree), encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                Path(path).unlink()  # what is half written
            os.write(TERMINAL, f"alrpc: {message}\n".encode())


def log_line(text: str) -> None:
    """Put a line into the log, if there is room."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def kill_process(pid: int) -> None:
    """End another process of a run that is over, frozen as it may be. Only of `alrpc launch`: elsewhere the pid may be another's."""
    if "ALRPC_LAUNCHER" in os.environ:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hard_exit(code: int) -> NoReturn:
    """End at once: a broken connection must not keep a library's destructors waiting."""
    with contextlib.suppress(OSError):  # no room in the log
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
