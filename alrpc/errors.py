"""Exceptions whose messages are meant for the user, and what each of them means for a process and for its run.

raised by        exception          exit code of the process   may a restart help
anything         UserError          2, the run is refused      no: nothing of it is left
a stage          (any other)        1                          yes
the coordinator  StageFailed        1, or 3 if not retryable   yes, unless it is not retryable
the coordinator  Stopped            75 (EX_TEMPFAIL)           nothing has failed: --resume goes on
the launcher     StartupError       (as it was told: 2)        no
the launcher     RunFailed          (as it was told: 1)        yes
the launcher     PermanentFailure   (as it was told: 3)        no
the launcher     Interrupted        128 + the signal's number  nothing has failed
"""

import signal

FAILED, REFUSED, FAILED_FOR_GOOD, STOPPED = 1, 2, 3, 75


class UserError(Exception):
    """Something the user can put right. Its message is one line: the field or file, what was wrong, what would be right."""


class NonFinite(UserError):
    """A loss or a parameter became infinite or not a number; training stops there."""


class StageFailed(UserError):
    """A process of the run raised, was killed, is gone or hangs; the message says which, where, why, and where its log is."""

    def __init__(self, message: str, retryable: bool = True):
        super().__init__(message)
        self.retryable = retryable
        """Whether it may go better another time."""
        self.pids: list[int] = []
        """The processes of the stages, to be ended where the launcher cannot know them."""


class RunFailed(UserError):
    """A run ended before its end; the message names the process, its host, the cause and its log."""


class PermanentFailure(RunFailed):
    """A run ended by what would happen again, such as a loss that is not finite."""


class StartupError(RunFailed):
    """The coordinator could not begin: its data, or a device, is not there. Nothing of the run is left."""


class Stopped(Exception):
    """A run was asked to end by SIGTERM, and has taken a checkpoint first; it has not failed, and can be resumed."""


class Interrupted(Exception):
    """A run was ended by a signal to its launcher."""

    def __init__(self, number: int, more: str = ""):
        super().__init__(f"ended by {signal.Signals(number).name}{more}")
        self.number = number


OF_EXIT_CODE = {REFUSED: StartupError, FAILED_FOR_GOOD: PermanentFailure, STOPPED: Stopped}
"""What the launcher raises for a process that ended its run with this code; RunFailed for every other one."""


def exit_code(error: Exception) -> int:
    """The exit code of a process that ends by this exception."""
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, StageFailed):
        return FAILED if error.retryable else FAILED_FOR_GOOD
    return REFUSED if isinstance(error, UserError) else FAILED


def error_line(error: Exception) -> str:
    """An exception as one line: its message where that is for the user, else its type too."""
    text = str(error) if isinstance(error, (UserError, Stopped, Interrupted)) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
