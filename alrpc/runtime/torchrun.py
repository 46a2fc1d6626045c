"""torchrun, whose last line says why the run has failed: python -m alrpc.runtime.torchrun OPTIONS OF torchrun."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, main

from alrpc.pipeline.cause import hear_causes, tell_cause
from alrpc.pipeline.failures import BLAME_DELAY
from alrpc.runtime.local import pipeline_role, read_cause
from alrpc.runtime.secret import take_secret


def run(arguments: list[str]) -> int:
    """Run torchrun; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="alrpc-", ignore_cleanup_errors=True) as scratch:
        try:
            main(["--log-dir", scratch, *arguments])
            return 0
        except Exception as error:
            traceback.print_exc()
            print(f"alrpc: {find_cause(error, Path(scratch), arguments)}", file=sys.stderr, flush=True)
            return 1


def find_cause(error: Exception, scratch: Path, arguments: list[str]) -> str:
    """What the coordinator has said, or another process of this host, or what torchrun itself has seen; that is told to other hosts."""
    attempts = sorted(scratch.glob("*/attempt_*"), key=lambda path: int(path.name.partition("_")[2]))
    told = attempts[-1].glob("*/error.json") if attempts else ()
    for path in sorted(told, key=lambda path: (path.parent.name != "0", path.stat().st_mtime_ns)):  # the coordinator's first
        with suppress(OSError), path.open(encoding="utf-8") as file:
            if cause := read_cause(file)[0]:
                return cause
    if not isinstance(error, ChildFailedError):
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if attempts or not isinstance(error, DistError):
            return reason
        return f"the machines did not meet; start launch/torchrun.sh on each, with one MASTER and PORT, within WAIT seconds: {reason}"
    rank, failure = next(iter(error.failures.items()))
    number = -failure.exitcode
    how = f"was killed by {signal.Signals(number).name}" if number > 0 else f"ended with exit code {failure.exitcode}"
    cause = f"{'' if rank else 'the '}{pipeline_role(rank)} (rank {rank}, host {socket.gethostname()}) {how}"
    telling = threading.Thread(target=tell_others, args=(cause, len(attempts) - 1, arguments), daemon=True)
    telling.start()
    telling.join(BLAME_DELAY)  # node 0 may be gone
    return cause


def tell_others(cause: str, attempt: int, arguments: list[str]) -> None:
    """Tell the processes of other hosts a cause, as the processes of an attempt do."""
    options = get_args_parser().parse_args(arguments)
    own = {
        "MASTER_ADDR": options.master_addr,
        "MASTER_PORT": str(options.master_port),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": options.nnodes,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }
    os.environ.update(own)
    hear_causes(0, take_secret())
    tell_cause(cause)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
