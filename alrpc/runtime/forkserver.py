"""The fork server: a process that has imported torch, from which a launcher forks the processes of its runs.

alrpc launch ──exec──► fork server ──fork──► rank 0, rank 1, …
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from alrpc.posix.forks import ensure_server

PRELOAD = "alrpc.runtime.preload"


def start_fork_server() -> None:
    """Start the fork server, unless it is running. This does not wait for its imports, so call it early."""
    multiprocessing.set_forkserver_preload([PRELOAD])
    settings = {
        **launch_environment(),
        "PYTHONSAFEPATH": "1",  # modules in the working directory must not shadow others
        "OMP_NUM_THREADS": "1",  # no library may start threads before the fork
        "OPENBLAS_NUM_THREADS": "1",
        # multiprocessing's resource tracker cleans up /dev/shm after a killed launcher; its warning about that is not needed.
        "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"])),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # torch's own warnings are not about the run
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
    }
    with environment(settings):
        ensure_server()


def launch_environment() -> dict[str, str]:
    """Environment variables that must be set before a process of a run starts: its module path and its memory settings."""
    return {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        # Large pages for the heap. With torch's THP_MEM_ALLOC_ENABLE each tensor would be aligned and the heap would keep growing.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
    }


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which processes started in the context inherit, and restore them at the end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def startable() -> Iterator[None]:
    """Let multiprocessing start processes from any process, and keep it from importing the main script into them.

    They do not need it, and a script without `if __name__ == "__main__"` would start another run. A worker of a
    `multiprocessing.Pool` is a daemon, which may not start processes; those of a run end with it all the same.
    """
    main, process = sys.modules["__main__"], multiprocessing.current_process()
    hidden = {name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__}
    main.__spec__ = None
    daemon, process._config["daemon"] = process.daemon, False
    try:
        yield
    finally:
        main.__dict__.update(hidden)
        process._config["daemon"] = daemon
