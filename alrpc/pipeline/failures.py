"""The failure protocol: all of its timers, who reports first, and how a failing process reports the cause and ends.

event                             detected by              consequence
a stage raises                    the stage                it emits Failure and stays alive for EXIT_DELAY; the coordinator waits
                                                           FAILURE_WINDOW for failures of earlier stages, and names the earliest
a process is killed               the launcher's agent     it ends the others at once and names that one; so does torchrun
a process and its host are lost   a broken connection      the coordinator waits BLAME_DELAY, so that a process that knows the
                                                           cause reports first, and then names the stage that was lost first
a stage is frozen or isolated     the coordinator          after silence_limit without an answer to a call or a ping; named
                                                           after FAILURE_WINDOW
the coordinator is frozen         each stage               after silence_limit without a call or an answer to a ping: it writes
                                                           the cause to the error file and kills the coordinator
the data loader hangs             the coordinator          after silence_limit without a micro-batch: it ends the run; the first
                                                           one may take READERS_TIMEOUT when processes read the data
a link loses packets              the coordinator          after a stage has waited silence_limit for a sent packet: it ends the
                                                           run
a stage computes for long         the coordinator          it reports the stage as slow, and waits for it; also when only pings
                                                           are answered, since code keeps the stage's interpreter lock
code keeps the coordinator's lock each stage               it waits for it; stage 1 says so
all processes are suspended       nobody                   the run goes on, since only time awake counts as silence
a neighbour is lost               a stage                  it waits NEIGHBOUR_EXIT_DELAY to be ended, then ends by itself
the launcher is killed            each process             it ends within PARENT_CHECK; the coordinator prints the reason
the coordinator itself raises     the coordinator          it writes the cause to the error file for the launcher, and ends

The protocol relies on the order FAILURE_WINDOW < BLAME_DELAY < EXIT_DELAY < NEIGHBOUR_EXIT_DELAY: the coordinator receives a
cause before it reports a consequence, and reports it before the processes that wait for the report end by themselves.

This module has no heavy imports, so that a process can report a failure before torch is imported.
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

from alrpc.posix.streams import tell

# ---- timers, in seconds

POLL_TIMEOUT = 0.5  # long-poll timeout; one call to each stage is always outstanding, so a broken connection surfaces at once
POLL_PAUSE = 0.05  # between two checks of the outstanding calls
FAILURE_WINDOW = 0.5  # between a stage's failure and its report, to wait for failures of earlier stages
BLAME_DELAY = 3.0  # between a lost connection and its report, to let a process that knows the cause report first
EXIT_DELAY = 5.0  # for which a failed stage stays alive, so that the coordinator receives the cause
NEIGHBOUR_EXIT_DELAY = 6.0  # for which a stage that lost its neighbour waits to be ended, before it ends by itself
SHUTDOWN_TIMEOUT = 5  # between the agent's SIGTERM to the processes of a failed run and its SIGKILL
AGENT_INTERVAL = 0.1  # between two checks of the processes by the agent
HEARTBEAT_CHECK = 0.5  # between two checks of the time of the coordinator's last call
PING_AFTER = 1.0  # without a sign of life, after which a process is pinged; and between two pings
LONGEST_LOOK = 2.0  # between two checks; in any time beyond this the process that checks was not awake
TELL_DELAY = 1.0  # for which a process of several hosts stays alive once it has told the cause, so that all hosts hear it
JOIN_TIMEOUT = 50.0  # for which a process waits for the others to start
LEAVE_TIMEOUT = 50.0  # for which a process waits for the others when all have finished
READERS_TIMEOUT = 120.0  # that the first micro-batch may take when processes read the data, which start meanwhile
PRUNE_TIMEOUT = 60.0  # that a stage may take to remove files
P2P_TIMEOUT = 7 * 86_400.0  # of a send or receive: long, since a neighbour may be slow; the control plane detects a dead one
SILENCE_SHARE = 0.8  # share of health.timeout after which a silent process counts as lost; the rest is for ending the run


def silence_limit(timeout: float) -> float:
    """Seconds without an answer or call after which a process counts as lost, so that the run ends within health.timeout."""
    return SILENCE_SHARE * timeout


SILENT = "it is frozen, or its host or the network is lost"


class PeerLost(Exception):
    """The connection to a neighbouring rank broke, which is a consequence of another failure."""


class Disconnected(Exception):
    """The control plane broke while a process joined or left it, which is a consequence of another failure."""


class StageLost(Exception):
    """A stage does not answer."""

    def __init__(self, stage: int, reason: str, silent: bool = False, when: float | None = None):
        super().__init__(reason)
        self.stage = stage
        self.silent = silent
        """Whether the stage did not answer in time; otherwise its connection broke."""
        self.when = time.monotonic() if when is None else when


def describe_failure(stage: int, host: str, cause: str, packet: str, log: str) -> str:
    """A message that names a stage, its host, the cause, its last packet and its log."""
    return f"stage {stage} (rank {stage}, host {host}) {cause}; last packet: {packet}; log: {log}"


# ---- how a process reports a failure, and ends


CAUSES = "ALRPC_CAUSES"
"""The environment variable with the path of the launcher's file for causes."""


def write_error_file(message: str, code: int) -> None:
    """Write the cause of a failure and the exit code where the launcher looks for it: in a file that it holds in memory, or in
    the file of torchrun's agent.

    If the file cannot be written, the cause is printed to the terminal.
    """
    in_memory = os.environ.get(CAUSES)  # of all processes of the run, so each appends a line
    if path := in_memory or os.environ.get("TORCHELASTIC_ERROR_FILE"):
        tree = {"message": message, "timestamp": int(time.time()), "code": code}
        try:
            with open(path, "a" if in_memory else "w", encoding="utf-8") as file:
                file.write(json.dumps(tree) + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                Path(path).unlink()  # it may be incomplete
            tell(f"alrpc: {message}")


def log_line(text: str) -> None:
    """Print a line to the log, if the disk is not full."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def kill_process(pid: int) -> None:
    """Send SIGKILL to a leftover process of this run. Only under `alrpc launch`, where the pid is known to be on this host."""
    if "ALRPC_LAUNCHER" in os.environ:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hard_exit(code: int) -> NoReturn:
    """Exit at once, without the destructors of libraries, which could wait for a broken connection."""
    with contextlib.suppress(OSError):  # the disk of the log may be full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
