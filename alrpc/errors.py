"""Exceptions whose messages are meant for the user, with the exit code of each and whether a restart may help.

raised by        exception          exit code of the process   may a restart help
any code         UserError          2, the run is refused      no: the run leaves nothing behind
any code         UsageError         2, the run is refused      no: likewise
a stage          (any other)        1                          yes
the coordinator  StageFailed        1, or 3 if not retryable   yes, unless it is not retryable
the coordinator  Stopped            75 (EX_TEMPFAIL)           nothing has failed: --resume continues the run
the launcher     StartupError       (after a process' 2)       no
the launcher     RunFailed          (after a process' 1)       yes
the launcher     PermanentFailure   (after a process' 3)       no
the launcher     Interrupted        128 + the signal's number  nothing has failed

The command `alrpc` itself ends with 2 for a UsageError, as click does for an option that it refuses, and with 1 for every other
UserError: `command_code`.
"""

import os
import signal
import traceback
import warnings
from pathlib import Path

FAILED, REFUSED, FAILED_FOR_GOOD, STOPPED = 1, 2, 3, 75


class UserError(Exception):
    """An error that the user can correct. Its message is one line: the field or file, what was wrong, what would be right."""


class Advice(UserWarning):
    """A warning of what works but is hardly meant. Its message is one line: what is so, and what would be better."""


class UsageError(UserError):
    """A mistake in the words of the command or in the configuration, told before anything is begun. Its message begins with the
    option or the field."""


class NonFinite(UserError):
    """A loss or a parameter became infinite or not a number, which stops the training."""


class StageFailed(UserError):
    """A process of the run raised, was killed, was lost or hangs; the message names the process, its host, the cause and its log."""

    def __init__(self, message: str, retryable: bool = True):
        super().__init__(message)
        self.retryable = retryable
        """Whether a restart may succeed."""
        self.pids: list[int] = []
        """Process ids of the stages that are still to be killed."""


class RunFailed(UserError):
    """A run ended early; the message names the process, its host, the cause and its log."""


class PermanentFailure(RunFailed):
    """A run failed for a cause that would recur, such as a loss that is not finite."""


class StartupError(RunFailed):
    """The coordinator could not start the run, for example because its data or a device is missing. The run leaves nothing behind."""


class Stopped(Exception):
    """A run ended because of SIGTERM, after it had taken a checkpoint; it has not failed, and can be resumed."""


class Interrupted(Exception):
    """A run was ended by a signal to its launcher."""

    def __init__(self, number: int, more: str = ""):
        super().__init__(f"ended by {signal.Signals(number).name}{more}")
        self.number = number


OF_EXIT_CODE = {REFUSED: StartupError, FAILED_FOR_GOOD: PermanentFailure, STOPPED: Stopped}
"""The exception that the launcher raises for the exit code of the process that ended the run; RunFailed for any other code."""


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends with this exception."""
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, StageFailed):
        return FAILED if error.retryable else FAILED_FOR_GOOD
    if isinstance(error, (NonFinite, SystemExit)):
        return FAILED_FOR_GOOD
    return REFUSED if isinstance(error, UserError) else FAILED


def command_code(error: BaseException) -> int:
    """The exit code of the command `alrpc` when it ends with this exception, which is told in one line."""
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, Interrupted):
        return 128 + error.number
    return REFUSED if isinstance(error, UsageError) else FAILED


def error_line(error: BaseException) -> str:
    """An exception as one line: its message alone if that is meant for the user, else its type and message."""
    if isinstance(error, (UserError, Stopped, Interrupted)):
        text = str(error)
    elif isinstance(error, SystemExit):
        text = describe_exit(error)
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
        if isinstance(error, PermissionError):
            text += f"; {needed_permission(Path(os.fsdecode(error.filename)))}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def show_advice_as_lines() -> None:
    """Let this process show advice as one line, as it does errors, and any other warning as Python does."""
    usual = warnings.formatwarning

    def one_line(message, category, filename, lineno, line=None) -> str:
        is_advice = issubclass(category, Advice)
        return f"alrpc: {message}\n" if is_advice else usual(message, category, filename, lineno, line)

    warnings.formatwarning = one_line


def describe_exit(error: SystemExit) -> str:
    """Say where sys.exit was called: by the user's code, since no code of this package calls it while a command runs."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{frame.f_code.co_filename}, line {line}: called {exit_call(error)}"


def exit_call(error: SystemExit) -> str:
    """The call that raised SystemExit."""
    return f"sys.exit({'' if error.code is None else repr(error.code)})"


def needed_permission(path: Path) -> str:
    """What a process that was refused a file or directory needs."""
    path = path.absolute()
    closed = next((folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)), None)
    if closed is not None:
        return f"it needs the permission to enter {closed}"
    modes = {"read": os.R_OK, "write": os.W_OK, **({"enter": os.X_OK} if path.is_dir() else {})}
    wanting = next((name for name, mode in modes.items() if not os.access(path, mode)), None)
    if path.exists() and wanting:
        return f"it needs the permission to {wanting} it"
    return f"it needs the permission to write in {path.parent}"
