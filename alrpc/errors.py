"""The exceptions whose messages are meant for the user, not for a developer."""

import signal


class UserError(Exception):
    """Something the user can put right. Its message is one line: the field or file, what was wrong, what would be right."""


class Stopped(Exception):
    """A run was told to end by SIGTERM, and has taken a checkpoint first; it has not failed, and can go on."""


class Interrupted(Exception):
    """A run was ended by a signal to its launcher."""

    def __init__(self, number: int, more: str = ""):
        super().__init__(f"ended by {signal.Signals(number).name}{more}")
        self.number = number
