"""Shows the lines that the processes of a run write into their logs, as they are written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 0.2  # seconds between two looks at the logs


@contextmanager
def followed(logs: Path) -> Iterator[None]:
    """Print each new line of logs/*.log on standard error, after the name of its process, until the end of the context."""
    read = {path: path.stat().st_size for path in logs.glob("*.log")}
    ended = threading.Event()

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(INTERVAL)
            for path in sorted(logs.glob("*.log")):
                text = path.read_bytes()[read.get(path, 0) :]
                lines = text if is_last else text[: text.rfind(b"\n") + 1]  # the end of a line may not be there yet
                read[path] = read.get(path, 0) + len(lines)
                for line in lines.decode(errors="replace").splitlines():
                    print(f"{path.stem}: {line}", file=sys.stderr, flush=True)

    def follow_if_possible() -> None:
        with suppress(OSError):  # a log that is gone, a terminal that is gone: the run goes on without
            follow()

    thread = threading.Thread(target=follow_if_possible, name="follow-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
