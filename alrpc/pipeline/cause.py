"""Why a run ends, told to the processes of all hosts through the rendezvous store: torchrun only ends those of its own host."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch import distributed

from alrpc.errors import FAILED
from alrpc.pipeline.failures import EXIT_DELAY, P2P_TIMEOUT, TELL_DELAY, hard_exit, log_line, write_error_file
from alrpc.pipeline.groups import rendezvous_store
from alrpc.pipeline.seal import seal, unseal

CAUSE = "cause"
_store: distributed.Store | None = None
_secret = b""
_told = False
_heard: str | None = None


def hear_causes(rank: int, secret: bytes) -> None:
    """End this process, with the cause in its error file, when another host tells one. On one host this does nothing.

    The coordinator gets EXIT_DELAY to say more about it.

    Args:
        secret: the run's, with which causes are sealed.
    """
    global _store, _secret
    _secret = secret
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        _store = rendezvous_store()
        delay = 0 if rank else EXIT_DELAY
        threading.Thread(target=_hear, args=(rendezvous_store(), delay), name="hear-cause", daemon=True).start()


def heard_cause() -> str | None:
    """The cause that another host has told; None if none has."""
    return _heard


def tell_cause(cause: str) -> None:
    """Tell the processes of all hosts why this one ends, and give them the time to hear it, since the store ends with its host."""
    global _told
    if _store is not None and not _told:
        _told = True
        with suppress(RuntimeError):  # the store is gone, and with it whoever could tell others
            _store.set(CAUSE, seal(_secret, cause.encode()))
            time.sleep(TELL_DELAY)


def _hear(store: distributed.Store, delay: float) -> None:
    global _heard
    try:
        store.wait([CAUSE], timedelta(seconds=P2P_TIMEOUT))
        cause = " ".join(unseal(_secret, store.get(CAUSE)).decode().split())
    except RuntimeError:  # the store is gone, or somebody else has written to it
        return
    if not _told:
        _heard = cause
        time.sleep(delay)
        log_line(cause)
        write_error_file(cause, FAILED)
        hard_exit(FAILED)
