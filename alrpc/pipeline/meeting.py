"""Where the processes of a run meet: the store of torch's elastic agent, anew for each of its attempts."""

from __future__ import annotations

import os
from collections.abc import Iterator

from torch import distributed
from torch.distributed.rendezvous import register_rendezvous_handler

SCHEME = "alrpc"
MEETING = f"{SCHEME}://"
"""The init_method of both planes."""


def meeting_point() -> distributed.Store:
    """The store where the processes of this attempt meet.

    After a restart torchrun's static rendezvous gives the same store again, with what the processes of the attempt before left
    there, so each attempt has keys of its own.
    """
    store, _, _ = next(distributed.rendezvous("env://"))
    return distributed.PrefixStore(f"alrpc-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _meet(url: str, **_) -> Iterator[tuple[distributed.Store, int, int]]:
    yield meeting_point(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


register_rendezvous_handler(SCHEME, _meet)
