"""Measures a server under load: requests at fixed rates, whether or not it keeps up, and how long each waits for its answer."""

from __future__ import annotations

import itertools
import json
import mimetypes
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alrpc.errors import UsageError, UserError
from alrpc.inference.sources import choose_columns, read_examples

TIMEOUT = 30  # seconds after which a request counts as an error
IDLE = 1.0  # seconds after which a connection is made anew, before the server closes it
JSON = "application/json"
TEXT_COLUMN = "text"  # unless another one is given

Body = tuple[bytes, str]
"""A request's body and its content type."""


@dataclass
class Told:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    """Of each answered request, from when it was due."""
    exits: Counter[int] = field(default_factory=Counter)
    errors: int = 0


def connect(url: str) -> HTTPConnection:
    """A connection to a server, which is made at the first request; raises UsageError for what is no URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        of_scheme = {"http": HTTPConnection, "https": HTTPSConnection}[parts.scheme]
        return of_scheme(parts.hostname, parts.port, timeout=TIMEOUT)
    except (KeyError, ValueError, TypeError, AttributeError, HTTPException) as error:
        raise UsageError(f"URL: got {url!r}; give a server's, such as http://127.0.0.1:8000") from error


def bodies_of(url: str, sources: Sequence[str], columns: Sequence[str]) -> list[Body]:
    """A body for each example of the sources, of the kind that the server takes.

    Args:
        columns: those that hold an example; see `alrpc.inference.sources.choose_columns`.

    Raises:
        UserError: when there is no server of alrpc, or no example; or naming the place of the first one that cannot be read.
    """
    connection = connect(url)
    try:
        connection.request("GET", "/health")
        kind = json.loads(connection.getresponse().read())["takes"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}: no server of `alrpc serve` answers there ({error or type(error).__name__})") from error
    finally:
        connection.close()
    bodies = []
    for place, read in read_examples(sources, kind, choose_columns(columns, kind, TEXT_COLUMN)):
        try:
            bodies.append(_body_of(read()))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        except OSError as error:
            raise UserError(f"{place}: {error.filename} cannot be read: {error.strerror}") from error
    if not bodies:
        raise UserError(f"{', '.join(sources)}: has no example")
    return bodies


def _body_of(raw: Any) -> Body:
    if isinstance(raw, Path):
        return raw.read_bytes(), mimetypes.guess_type(raw)[0] or "application/octet-stream"
    return json.dumps({"input": raw.tolist() if hasattr(raw, "tolist") else raw}).encode(), JSON


def measure(url: str, bodies: Sequence[Body], rate: float, seconds: float, clients: int) -> dict:
    """Send requests, `rate` a second, for so many seconds; the n-th is due n / rate seconds after the first.

    A request that no client was free to send in time waits, and its time counts from when it was due.

    Returns:
        A dictionary for JSON: `rate`, `requests`, `errors` (no answer within TIMEOUT, or another status than 200),
        `per_second` (answers, until the last one), `p50_ms`, `p99_ms` and `max_ms` (None without answers), and `exits`: how many
        answers each gave.
    """
    count, told, lock = max(1, round(rate * seconds)), Told(), threading.Lock()
    numbers, began = itertools.count(), time.monotonic()

    def client() -> None:
        connection, last = connect(url), began
        while (number := next(numbers)) < count:
            due = began + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() - last > IDLE:
                connection.close()
            exit = _ask(connection, *bodies[number % len(bodies)])
            last = time.monotonic()
            with lock:
                if exit is None:
                    told.errors += 1
                else:
                    told.exits[exit] += 1
                    told.seconds.append(last - due)
        connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(min(clients, count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, waited = time.monotonic() - began, sorted(told.seconds)

    def quantile(share: float) -> float | None:
        return 1000 * waited[min(len(waited) - 1, int(share * len(waited)))] if waited else None

    return {
        "rate": rate,
        "requests": count,
        "errors": told.errors,
        "per_second": len(waited) / took,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "max_ms": quantile(1.0),
        "exits": dict(sorted(told.exits.items())),
    }


def _ask(connection: HTTPConnection, body: bytes, content_type: str) -> int | None:
    """The exit that answered; None for an error."""
    try:
        connection.request("POST", "/predict", body, {"Content-Type": content_type})
        answer = connection.getresponse()
        text = answer.read()
        return json.loads(text)["exit"] if answer.status == 200 else None
    except (OSError, HTTPException, ValueError):
        connection.close()
        return None
