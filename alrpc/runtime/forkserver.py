"""The fork server: one process that has imported torch, from which a launcher forks the processes of its runs.

alrpc launch ──exec──► fork server ──fork──► rank 0, rank 1, …
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

PRELOAD = "alrpc.runtime.preload"


def start_fork_server() -> None:
    """Start the fork server, unless it runs; does not wait until it has imported everything, so call this early."""
    multiprocessing.set_forkserver_preload([PRELOAD])
    settings = {
        **launch_environment(),
        "PYTHONSAFEPATH": "1",  # modules in the working directory must not stand for others
        "OMP_NUM_THREADS": "1",  # no library may start threads before the fork
        "OPENBLAS_NUM_THREADS": "1",
        # What a killed launcher has left in /dev/shm, multiprocessing's tracker removes; nobody need read that it does.
        "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"])),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # torch's own warnings are not about the run
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
    }
    with environment(settings):
        forkserver.ensure_running()
    atexit.register(stop_fork_server)


def stop_fork_server() -> None:
    """End the fork server once all that it has forked has ended, and wait for it, so that nothing outlives a command."""
    forkserver._forkserver._stop()  # multiprocessing has no public way


def launch_environment() -> dict[str, str]:
    """What must be set before a process of a run begins: this process' modules, and how it keeps its memory."""
    return {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        # Heaps in large pages. torch's THP_MEM_ALLOC_ENABLE does so too, but aligns each tensor, and the heap never ceases to grow.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
    }


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process' environment, which those that it starts inherit, and put them back."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Keep multiprocessing from importing the script that is running into the processes that it starts.

    They need nothing of it, and a script that has no `if __name__ == "__main__"` would start another run.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
