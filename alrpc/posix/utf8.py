"""UTF-8 for all text of a command and of the processes that it starts, whatever the locale says."""

from __future__ import annotations

import codecs
import os
import sys

from alrpc.errors import UsageError


def use_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode (PEP 540), unless its locale is UTF-8 or it is in that mode already.

    The names of files, which all processes of a run and its files tell each other, then mean the same everywhere. The process
    keeps its id.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that it starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def check_utf8(text: str, name: str = "") -> None:
    """Refuse text from the system, such as a path, whose bytes are not UTF-8: the files of a run cannot hold it.

    Args:
        name: the option or argument, for the message.

    Raises:
        UsageError: when it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name}{': ' if name else ''}got {os.fsencode(text)!r}, which is not UTF-8; give it in UTF-8"
        ) from error
