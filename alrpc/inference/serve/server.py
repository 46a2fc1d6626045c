"""The server's process: its socket, the thread that computes, and its end."""

from __future__ import annotations

import errno
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from alrpc.errors import UsageError
from alrpc.rundir import run_name

if TYPE_CHECKING:
    from alrpc.inference.predictor import Exit, Predictor
    from alrpc.inference.serve.batching import Waiting

MISSING = "the server needs the extra: pip install 'alrpc[serve]' ({} is missing)"
BACKLOG = 1024  # connections that the system keeps until they are accepted
CONNECTIONS = 256  # at a time; more are answered with 503
GRACE = 5  # seconds for the requests under way, once the server is told to end


def check_extra() -> None:
    """Refuse, with a UsageError, an environment without the libraries of the extra `serve`."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(MISSING.format(error.name)) from error


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket of this host's address and port, which takes no connection yet; port 0 is any free one.

    Raises:
        UsageError: for an address that this machine does not have, or a port that is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: got {host!r}; give a name or an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        wrong = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise UsageError(f"{wrong}: cannot listen at {host} port {port}: {error.strerror}; give another one") from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def hosts_of(listener: socket.socket) -> set[str] | None:
    """The names by which a server at a socket may be called: those of this machine if only it reaches the socket; None for any."""
    return {"localhost", "127.0.0.1", "::1", listener.getsockname()[0]} if is_loopback(listener) else None


def address_of(listener: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    predictor: Predictor,
    listener: socket.socket,
    *,
    exit: Exit,
    max_batch: int,
    wait: float,
    ready: Callable[[], object],
) -> None:
    """Answer what comes to a socket until SIGTERM, which then ends this process, or SIGINT, which raises KeyboardInterrupt.

    Args:
        exit, max_batch, wait: see `alrpc.inference.serve.batching.answer_batches`.
        ready: called once all is there.
    """
    import uvicorn

    from alrpc.inference.serve.app import Served, build_app
    from alrpc.inference.serve.batching import answer_batches
    from alrpc.inference.serve.metrics import Metrics

    waiting: Waiting = queue.Queue()
    metrics = Metrics(waiting.qsize)
    app = build_app(Served(predictor, run_name(predictor.directory), waiting, metrics), hosts_of(listener))
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    given = (predictor, waiting, exit, max_batch, wait, metrics.computed)
    computing = threading.Thread(target=answer_batches, args=given, name="compute", daemon=True)
    computing.start()
    try:
        ready()
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        waiting.put(None)
        computing.join(GRACE)
