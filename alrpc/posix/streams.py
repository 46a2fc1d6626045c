"""The standard streams of a command: open from its start, and no failure to write to them ends a training.

A terminal may be closed, a reader may end (`| head`) or pause (`| less`), the disk behind a redirection may be full. What then
cannot be written is dropped: a run's files have it.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import TextIO

PATIENCE = 2.0  # seconds that a training waits for a reader that reads nothing

_terminal_errors = 2  # the descriptor of the standard error with which the process began


class Output(io.FileIO):
    """A file to which writing never fails: what cannot be written is dropped."""

    patience: float | None = None
    """Seconds that a process waits for a reader that reads nothing, before it drops what that should read; None to wait for ever."""
    error: OSError | None = None
    """Why something was dropped first."""
    _taken = True  # whether the last piece has been written

    def write(self, data) -> int:
        try:
            self._taken = self._is_ready()
            if self._taken:
                return super().write(memoryview(data)[: select.PIPE_BUF])  # which a pipe that is ready takes at once
            raise OSError(errno.EAGAIN, "its reader does not read")
        except OSError as error:
            self.error = self.error or error
        return len(data)

    def _is_ready(self) -> bool:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        if self.patience is None:
            return bool(poll.poll())
        return bool(poll.poll(1000 * self.patience if self._taken else 0))


def text_stream(descriptor: int, like: TextIO | None) -> TextIO:
    """A stream of lines to a descriptor, by an `Output`, in the encoding of another stream."""
    output = io.BufferedWriter(Output(descriptor, "w", closefd=False))
    encoding = getattr(like, "encoding", None) or "utf-8"
    return io.TextIOWrapper(output, encoding, errors="backslashreplace", line_buffering=True)


def begin_streams() -> None:
    """Open descriptors 0, 1 and 2 to /dev/null where they are closed, and let print and its kin write by an `Output`.

    Otherwise a file or a connection would get the number of a closed stream, and with it what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdout, sys.stderr = text_stream(1, sys.stdout), text_stream(2, sys.stderr)


def outlive_terminal() -> None:
    """From now on, also drop what a reader does not read in time: this process is worth more than its terminal."""
    Output.patience = PATIENCE


def unwritten() -> OSError | None:
    """Why standard output lacks something that was printed, in a process that is not worth more than its terminal."""
    sys.stdout.flush()
    return sys.stdout.buffer.raw.error if Output.patience is None else None


def is_lost() -> bool:
    """Whether something that was printed on standard output could not be written, so that a command may as well end."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Output) and raw.error is not None


def redirect(path: Path) -> tuple[TextIO, TextIO]:
    """Redirect this process' output, including that of libraries, to a file.

    Returns:
        Streams to the previous standard output and standard error.
    """
    global _terminal_errors
    terminal, errors = (text_stream(os.dup(number), stream) for number, stream in ((1, sys.stdout), (2, sys.stderr)))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    _terminal_errors = errors.fileno()
    begin_streams()
    return terminal, errors


def tell(text: str) -> None:
    """Write a line to the standard error with which the process began, whatever has been redirected since."""
    print(text, file=text_stream(_terminal_errors, sys.stderr), flush=True)
