"""The paths of the service: which call each one is, what it takes, gives and may refuse.

`CALLS` is the table; routing and `/openapi.json` both come from it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.core import contract
from deployments.core.classification import to_json
from deployments.core.errors import IntentGraphError, InvalidInput, MethodNotAllowed, NotFound, TooLarge
from deployments.core.parsing import parse
from deployments.core.service import Answers, CachePolicy, IntentService
from deployments.core.settings import Settings
from deployments.http.docs import docs_routes
from deployments.http.openapi import document
from deployments.http.request_log import Handler, RequestLog

API = "/api/v1/intents"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
MAX_IDEMPOTENCY_KEY = 255
SERVE_TIMEOUT_MARGIN_S = 0.1
LOOKED_UP = "intents.looked_up"
"""Where a request's scope has the `LookedUp` of one that was looked up before it came here, see `front`."""

M = TypeVar("M", bound=BaseModel)


class Probes(Protocol):
    """What the operating paths ask of the process they run in."""

    async def health(self) -> contract.HealthResponse:
        """The state of every part."""

    async def metrics(self) -> bytes:
        """The whole cluster's metrics in Prometheus's exposition format."""


@dataclass(frozen=True, slots=True)
class Call:
    """One path of the service."""

    method: str
    path: str
    summary: str
    handler: str
    gives: type[BaseModel] | None = None
    takes: type[BaseModel] | None = None
    answers: tuple[int, ...] = (200,)
    refuses: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


_REFUSES = (400, 413, 422, 429, 500, 503)
_HEADERS = ("Cache-Control", "X-Request-Timeout-Seconds")
CALLS = (
    Call("POST", f"{API}/classify", "Classify one text", "classify",
         contract.Classification, contract.ClassifyRequest, (200,), _REFUSES, _HEADERS, ("scores",)),
    Call("POST", f"{API}/classify/batch", "Classify up to 100 texts, in order", "classify_batch",
         contract.BatchResponse, contract.BatchRequest, (200,), _REFUSES, _HEADERS, ("scores",)),
    Call("GET", f"{API}/types", "List intents, complexity levels and techniques", "types", contract.TypesResponse),
    Call("POST", f"{API}/feedback", "Correct or confirm an answer", "feedback",
         contract.FeedbackResponse, contract.FeedbackRecord, (201, 200), (400, 413, 422, 500, 503),
         ("Idempotency-Key",)),
    Call("GET", f"{API}/feedback/stats", "Count the feedback in the log", "feedback_stats",
         contract.StatsResponse, refuses=(500, 503)),
    Call("POST", f"{API}/cache/purge", "Delete kept predictions", "purge",
         contract.PurgeResponse, contract.PurgeRequest, refuses=(400, 403, 413, 422, 500, 503)),
    Call("POST", f"{API}/cache/warm", "Compute predictions and keep them, before anybody asks", "warm",
         contract.WarmResponse, contract.WarmRequest, refuses=(400, 403, 413, 422, 429, 500, 503),
         headers=("X-Request-Timeout-Seconds",)),
    Call("GET", "/health/live", "Whether this process answers", "live", contract.HealthResponse),
    Call("GET", "/health/ready", "Whether the service can classify", "ready", contract.HealthResponse, refuses=(503,)),
    Call("GET", "/health", "The same with details", "health", contract.HealthResponse, refuses=(503,)),
    Call("GET", "/metrics", "Metrics of the whole cluster", "metrics", refuses=(503,)),
    Call("GET", "/openapi.json", "This interface as OpenAPI 3.1", "openapi"),
)  # fmt: skip


def build_app(settings: Settings, service: IntentService, probes: Probes, log: RequestLog) -> ASGIApp:
    """The application: the calls of the table, `/docs`, and problem+json for everything refused."""
    handlers = Handlers(settings, service, probes)
    endpoints = {(call.method, call.path): log.around(getattr(handlers, call.handler)) for call in CALLS}
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()),
            *docs_routes(),
        ],
        exception_handlers={404: log.around(_no_such_path), 405: log.around(_no_such_method)},
    )
    app.router.redirect_slashes = False  # `classify/` is no path: a redirected POST would be an answer of no form
    return ShortCut(endpoints, app)


class ShortCut:
    """Takes a call of the table straight to its endpoint, and everything else through Starlette.

    An endpoint raises nothing, so that Starlette's routing and its two layers of error handling would add nothing but
    a fifth of what a hit costs.
    """

    def __init__(self, endpoints: Mapping[tuple[str, str], Handler], rest: ASGIApp) -> None:
        self._endpoints = endpoints
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's start and end."""
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        app = await endpoint(Request(scope, receive)) if endpoint else self._rest
        await app(scope, receive, send)


async def _no_such_path(request: Request, _error: Exception) -> Response:
    raise NotFound(f"no path {request.url.path}; /docs lists them")


async def _no_such_method(request: Request, error: HTTPException) -> Response:
    allowed = (error.headers or {})["Allow"]
    raise MethodNotAllowed(f"{request.url.path} does not take {request.method}; send {allowed}", allowed=allowed)


class Handlers:
    """One method for each call of the table: request in, response out, errors raised."""

    def __init__(self, settings: Settings, service: IntentService, probes: Probes) -> None:
        self._settings = settings
        self._service = service
        self._probes = probes
        self._openapi = to_json(document(CALLS))
        self._types = to_json(service.types().model_dump(mode="json"))

    async def classify(self, request: Request) -> Response:
        """Classify one text."""
        payload = await self._classification_request(contract.ClassifyRequest, request)
        answers = await self._answers(request, (payload.text,))
        return _answered(answers, answers.bodies[0])

    async def classify_batch(self, request: Request) -> Response:
        """Classify several texts, in order."""
        payload = await self._classification_request(contract.BatchRequest, request)
        answers = await self._answers(request, payload.texts)
        results = b",".join(answers.bodies)
        return _answered(answers, b'{"results":[%b],"count":%d}' % (results, len(payload.texts)))

    async def _classification_request(self, model: type[M], request: Request) -> M:
        try:
            return parse(model, await _read_body(request, self._settings.max_body_bytes))
        except IntentGraphError:
            self._service.refuse()
            raise

    async def _answers(self, request: Request, texts: tuple[str, ...]) -> Answers:
        request.state.log = {"texts": texts}
        try:
            options: dict[str, Any] = {
                "policy": CachePolicy.from_header(request.headers.get("cache-control", "")),
                "scores": _flag(request, "scores"),
                "timeout_s": _timeout_s(request),
                "looked_up": request.scope.get(LOOKED_UP),
            }
        except InvalidInput:
            self._service.refuse()
            raise
        answers = await self._service.classify(texts, **options)
        request.state.log |= {"cache": answers.cache_states, "stages_ms": answers.stages.spent_ms}
        return answers

    async def types(self, _request: Request) -> Response:
        """List the labels; the same bytes each time, they change only with the artifact."""
        return _json(self._types)

    async def feedback(self, request: Request) -> Response:
        """Record a correction or confirmation."""
        try:
            key = _idempotency_key(request)
            record = parse(contract.FeedbackRecord, await _read_body(request, self._settings.max_body_bytes))
        except IntentGraphError as error:
            self._service.refuse_feedback("unknown", error)
            raise
        receipt = await self._service.submit_feedback(record, key)
        return _json(to_json(receipt.model_dump()), 201 if receipt.status == "recorded" else 200)

    async def feedback_stats(self, _request: Request) -> Response:
        """Count the feedback."""
        stats = await self._service.feedback_stats()
        return _json(to_json(stats.model_dump()))

    async def purge(self, request: Request) -> Response:
        """Delete kept predictions."""
        payload = parse(contract.PurgeRequest, await _read_body(request, self._settings.max_body_bytes))
        purged = await self._service.purge(payload)
        request.state.log = {"deleted": purged.deleted}
        return _json(to_json(purged.model_dump()))

    async def warm(self, request: Request) -> Response:
        """Compute predictions and keep them."""
        timeout_s = _timeout_s(request)
        body = await _read_body(request, contract.MAX_WARM_BODY_BYTES)
        # On a thread: a thousand long texts take a quarter of a second, in which this replica would answer nobody.
        payload = await asyncio.to_thread(parse, contract.WarmRequest, body)
        warmed = (await self._service.warm(payload, timeout_s=timeout_s)).model_dump()
        request.state.log = warmed
        return _json(to_json(warmed))

    async def live(self, _request: Request) -> Response:
        """Answer; that is the point."""
        return _json(to_json({"status": "ok", "parts": {}}))

    async def ready(self, _request: Request) -> Response:
        """Say whether the service can classify."""
        return await self._health({"details"})

    async def health(self, _request: Request) -> Response:
        """Say how every part is, with details."""
        return await self._health(set())

    async def _health(self, without: set[str]) -> Response:
        health = await self._probes.health()
        body = health.model_dump(exclude=without, exclude_none=True)
        return _json(to_json(body), 503 if health.status == "unavailable" else 200)

    async def metrics(self, _request: Request) -> Response:
        """Sum the metrics of all replicas."""
        return Response(await self._probes.metrics(), media_type=EXPOSITION)

    async def openapi(self, _request: Request) -> Response:
        """Describe this interface."""
        return _json(self._openapi)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Starlette's own stream of it costs 20 µs, and nearly every body is one message."""
    chunks: list[bytes] = []
    size, is_last = 0, False
    while not is_last:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size, is_last = size + len(chunks[-1]), not message.get("more_body", False)
        if size > max_bytes:  # counted while it streams: Content-Length may be absent or wrong
            raise TooLarge(f"the body is larger than {max_bytes:,} bytes; send fewer or shorter texts")
    return b"".join(chunks)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def _answered(answers: Answers, body: bytes) -> Response:
    timing = ", ".join(f"{stage};dur={spent_ms:.3f}" for stage, spent_ms in answers.stages.spent_ms.items())
    return _json(body, headers={"X-Cache": ", ".join(answers.cache_states), "Server-Timing": timing})


def _flag(request: Request, name: str) -> bool:
    if not request.scope["query_string"]:  # of nearly every request; parsing nothing costs 15 µs
        return False
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidInput(f"query parameter {name} is {value[:32]!r}; send true or false")
    return value in ("true", "1")


def _timeout_s(request: Request) -> float | None:
    value = request.headers.get("x-request-timeout-seconds")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidInput(f"header X-Request-Timeout-Seconds is {value[:32]!r}; send a positive number of seconds")
    # Serve ends a request by the same header, with a plain 408: answer a little earlier, in the contract's form.
    return max(0.8 * seconds, seconds - SERVE_TIMEOUT_MARGIN_S)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidInput(f"header Idempotency-Key has {len(key)} characters; send 1 to {MAX_IDEMPOTENCY_KEY}")
    return key
