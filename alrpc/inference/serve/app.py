"""The routes of the server: what each takes and answers; every error is JSON, `{"error": "…"}`, with a status that says whose it is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alrpc.errors import UserError
from alrpc.inference.predict import answer_tree
from alrpc.inference.predictor import Answer, Predictor
from alrpc.inference.serve import plain, protocol
from alrpc.inference.serve.batching import Sample, Waiting
from alrpc.inference.serve.metrics import CONTENT_TYPE, Metrics
from alrpc.inference.sources import Example
from alrpc.reading.documents import describe
from alrpc.reading.regular import MIB

LARGEST = 16 * MIB  # bytes of a body
GONE = 499  # a client that has left in the middle of its body
MOST = 1024  # samples that wait for their batch, at most
PAGES = Environment(loader=PackageLoader("alrpc.inference.serve", "."), autoescape=True)
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob:"


@dataclass(frozen=True)
class Served:
    """What the server's routes share."""

    predictor: Predictor
    name: str
    """The name of the run: that of the model."""
    waiting: Waiting
    metrics: Metrics


def build_app(served: Served, hosts: Container[str] | None = None) -> ASGIApp:
    """The server's application.

    Args:
        hosts: the names by which it may be called; None for any. Of a server that only this machine reaches, another name is one that a
            page on the web has pointed here, to read its answers (DNS rebinding).
    """
    routes = [
        Route("/", page),
        Route("/predict", predict, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models/{name}", model_metadata),
        Route("/v2/models/{name}/ready", model_ready),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
    ]
    handlers = {ClientDisconnect: _gone, UserError: _user_error, HTTPException: _http_error, Exception: _fault}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # to an address that the client names
    app.state.served = served
    counted = _counted(app, served.metrics)
    return counted if hosts is None else _called(counted, hosts)


def _called(app: ASGIApp, hosts: Container[str]) -> ASGIApp:
    """Refuse requests whose header Host has another name."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "")
        try:
            known = urlsplit(f"//{host}").hostname in hosts
        except ValueError:  # of brackets that do not close
            known = False
        refused = as_json({"error": f"Host: got {host!r}; call this server localhost, or 127.0.0.1"}, 400)
        await (app if known else refused)(scope, receive, send)

    return called


def _counted(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Count the requests of predictions, with their status and time."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        route = scope.get("path", "").rpartition("/")[2]
        if route not in ("predict", "infer"):
            await app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await app(scope, receive, watch)
        finally:
            metrics.answered(route, status, time.perf_counter() - began)

    return counted


# ---- predictions


async def predict(request: Request) -> Response:
    served: Served = request.app.state.served
    body = await read_body(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    top_k = parse_top_k(request.query_params.get("top_k", "1"))
    examples, several = plain.examples_of(body, media_type, served.predictor.carried.preprocessing.kind)
    answers = await answer(served, examples, top_k)
    trees = [answer_tree(example.place, each, top_k) for example, each in zip(examples, answers, strict=True)]
    return as_json(trees if several else trees[0])


async def infer(request: Request) -> Response:
    served = _named(request)
    if "inference-header-content-length" in request.headers:
        raise UserError("Inference-Header-Content-Length: got a header, but tensors are not taken as binary data; give JSON")
    asked = plain.parse_json(await read_body(request), protocol.ASKED)
    answers = await answer(served, protocol.examples_of(asked, served.predictor), asked.parameters.top_k)
    return as_json(protocol.answered(asked, served.name, answers))


async def read_body(request: Request) -> bytes:
    """The body of a request, bounded; raises HTTPException for a larger one."""
    body = bytearray()
    refusal = HTTPException(413, f"body: has more than {LARGEST} bytes; send less at once")
    if int(request.headers.get("content-length", 0)) > LARGEST:
        raise refusal
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise refusal
    return bytes(body)


def parse_top_k(text: str) -> int:
    """The number of classes to name; raises UserError for anything else."""
    try:
        return plain.TOP_K.validate_python(text)
    except ValidationError as error:
        raise UserError(f"top_k: {describe(error)}") from error


async def answer(served: Served, examples: Sequence[Example], top_k: int) -> list[Answer]:
    """The answers to examples, in order, computed in batches with those of other requests.

    Raises:
        UserError: naming the place of the first one that is not of the run's kind, or that the network cannot compute.
        HTTPException: for more than can wait.
    """
    if len(examples) > MOST:
        raise HTTPException(413, f"body: has {len(examples)} examples; give at most {MOST} at once")

    def check_room() -> None:
        if served.waiting.qsize() + len(examples) > MOST:
            raise HTTPException(503, "too many samples wait already; ask again later", {"Retry-After": "1"})

    check_room()
    prepared = await asyncio.to_thread(_prepared, served.predictor, examples)
    check_room()
    samples = [Sample(each, top_k) for each in prepared]
    for sample in samples:
        served.waiting.put(sample)
    given = await asyncio.gather(*(asyncio.wrap_future(sample.answer) for sample in samples), return_exceptions=True)
    for example, each in zip(examples, given, strict=True):
        if isinstance(each, UserError):
            raise UserError(f"{example.place}: {each}") from each
        if isinstance(each, BaseException):
            raise each
    return given


def _prepared(predictor: Predictor, examples: Sequence[Example]) -> list[Any]:
    prepared = []
    for example in examples:
        try:
            prepared.append(predictor.carried.preprocessing.prepare(example.read()))
        except UserError as error:
            raise UserError(f"{example.place}: {error}") from error
    return prepared


# ---- what the server is


async def page(request: Request) -> Response:
    served: Served = request.app.state.served
    carried = served.predictor.carried
    shape = [list(shape) for _, shape in carried.preprocessing.tensors.values()]
    text = PAGES.get_template("page.html").render(
        name=served.name,
        kind=carried.preprocessing.kind,
        tensors=dict(zip(carried.preprocessing.tensors, shape, strict=True)),
        exits=len(served.predictor.components),
    )
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": POLICY})


async def health(request: Request) -> Response:
    served: Served = request.app.state.served
    kind, step = served.predictor.carried.preprocessing.kind, served.predictor.manifest["step"]
    return as_json({"status": "ok", "model": served.name, "takes": kind, "step": step})


async def metrics(request: Request) -> Response:
    return Response(request.app.state.served.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def server_metadata(request: Request) -> Response:
    return as_json(protocol.server_metadata())


async def live(request: Request) -> Response:
    return as_json({"live": True})


async def ready(request: Request) -> Response:
    return as_json({"ready": True})


async def model_metadata(request: Request) -> Response:
    served = _named(request)
    return as_json(protocol.model_metadata(served.name, served.predictor))


async def model_ready(request: Request) -> Response:
    return as_json({"name": _named(request).name, "ready": True})


def _named(request: Request) -> Served:
    served: Served = request.app.state.served
    if request.path_params["name"] != served.name:
        raise HTTPException(404, f"no model {request.path_params['name']!r}; this server has {served.name!r}")
    return served


# ---- answers


def as_json(tree: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of JSON in ASCII, so that the name of a class may have any character."""
    return Response(json.dumps(tree), status, headers, media_type=plain.JSON)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=GONE)  # which is counted, and heard by nobody


async def _user_error(request: Request, error: Exception) -> Response:
    return as_json({"error": str(error)}, 400)


async def _http_error(request: Request, error: Exception) -> Response:
    told = {404: f"no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    detail = told.get(error.status_code) if error.detail in ("Not Found", "Method Not Allowed") else None
    return as_json({"error": detail or error.detail}, error.status_code, dict(error.headers or {}))


async def _fault(request: Request, error: Exception) -> Response:
    return as_json({"error": f"a fault of the server: {type(error).__name__}; its log has the rest"}, 500)
