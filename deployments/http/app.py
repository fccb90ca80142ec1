"""The paths of the service: which call each one is, who may make it, what it takes, gives and may refuse.

`CALLS` is the table; routing and `/openapi.json` both come from it.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.core import access, contract
from deployments.core.classification import to_json
from deployments.core.errors import IntentGraphError, InvalidInput, MethodNotAllowed, NotFound
from deployments.core.feedback import FeedbackService
from deployments.core.parsing import parse
from deployments.core.service import Answers, CachePolicy, IntentService
from deployments.core.settings import Settings
from deployments.http.admission import Admission
from deployments.http.docs import docs_routes
from deployments.http.feedback import FeedbackHandlers
from deployments.http.openapi import document
from deployments.http.request_log import Handler, RequestLog
from deployments.http.wire import flag, json_response, read_body, timeout_s

API = "/api/v1/intents"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
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
    """One path of the service; `scope` is what its caller needs, None where it is open."""

    method: str
    path: str
    scope: access.Scope | None
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
    Call("POST", f"{API}/classify", "classify", "Classify one text", "classify",
         contract.Classification, contract.ClassifyRequest, (200,), _REFUSES, _HEADERS, ("scores",)),
    Call("POST", f"{API}/classify/batch", "classify", "Classify up to 100 texts, in order", "classify_batch",
         contract.BatchResponse, contract.BatchRequest, (200,), _REFUSES, _HEADERS, ("scores",)),
    Call("GET", f"{API}/types", "classify", "List intents, complexity levels and techniques", "types",
         contract.TypesResponse),
    Call("POST", f"{API}/feedback", "feedback", "Correct or confirm an answer", "feedback",
         contract.FeedbackResponse, contract.FeedbackRecord, (201, 200), (400, 410, 413, 422, 429, 500, 503),
         ("Idempotency-Key",)),
    Call("GET", f"{API}/feedback/stats", "feedback", "Count the feedback in the log", "feedback_stats",
         contract.StatsResponse, refuses=(500, 503)),
    Call("GET", f"{API}/feedback", "admin", "List the feedback in the order of the log", "list_feedback",
         contract.FeedbackPage, refuses=(422, 500, 503), query=("after", "limit", "state")),
    Call("DELETE", f"{API}/feedback/{{feedback_id}}", "admin", "Delete a feedback record, and undo its correction",
         "delete_feedback", answers=(204,), refuses=(404, 500, 503)),
    Call("POST", f"{API}/feedback/{{feedback_id}}/approve", "admin", "Have a correction served that waits",
         "approve_feedback", contract.ReviewResponse, refuses=(404, 409, 500, 503)),
    Call("POST", f"{API}/feedback/{{feedback_id}}/reject", "admin", "Have a correction never served that waits",
         "reject_feedback", contract.ReviewResponse, refuses=(404, 409, 500, 503)),
    Call("POST", f"{API}/feedback/erase", "admin", "Delete all feedback of a user", "erase_feedback",
         contract.EraseResponse, contract.EraseRequest, refuses=(400, 413, 422, 500, 503)),
    Call("POST", f"{API}/feedback/ack", "admin", "Move the training cursor", "ack_feedback",
         contract.AckResponse, contract.AckRequest, refuses=(400, 404, 413, 422, 500, 503)),
    Call("GET", f"{API}/feedback/patterns", "admin", "Show what is confused, gets worse or is contested",
         "feedback_patterns", contract.PatternsResponse, refuses=(422, 500, 503), query=("days",)),
    Call("POST", f"{API}/cache/purge", "admin", "Delete kept predictions", "purge",
         contract.PurgeResponse, contract.PurgeRequest, refuses=(400, 413, 422, 500, 503)),
    Call("POST", f"{API}/cache/warm", "admin", "Compute predictions and keep them, before anybody asks", "warm",
         contract.WarmResponse, contract.WarmRequest, refuses=(400, 403, 413, 422, 429, 500, 503),
         headers=("X-Request-Timeout-Seconds",)),
    Call("GET", "/health/live", None, "Whether this process answers", "live", contract.HealthResponse),
    Call("GET", "/health/ready", None, "Whether the service can classify", "ready", contract.HealthResponse,
         refuses=(503,)),
    Call("GET", "/health", None, "The same with details", "health", contract.HealthResponse, refuses=(503,)),
    Call("GET", "/metrics", None, "Metrics of the whole cluster", "metrics", refuses=(503,)),
    Call("GET", "/openapi.json", None, "This interface as OpenAPI 3.1", "openapi"),
)  # fmt: skip


def calls_of(settings: Settings) -> tuple[Call, ...]:
    """The calls of the table, with the scopes that the settings ask for."""
    if settings.metrics_open:
        return CALLS
    return tuple(replace(call, scope="admin") if call.handler == "metrics" else call for call in CALLS)


def build_app(
    settings: Settings,
    service: IntentService,
    feedback: FeedbackService,
    probes: Probes,
    log: RequestLog,
    admission: Admission,
) -> ASGIApp:
    """The application: the calls of the table, `/docs`, and problem+json for everything refused."""
    groups = Handlers(settings, service, probes), FeedbackHandlers(settings, feedback)
    refused = _refused(service, feedback)
    endpoints = {
        (call.method, call.path): log.around(
            _behind(admission, call, _handler(groups, call.handler), refused.get(call.handler))
        )
        for call in calls_of(settings)
    }
    app = Starlette(
        routes=[*_routes(endpoints), *docs_routes()],
        exception_handlers={404: log.around(_no_such_path), 405: log.around(_no_such_method)},
    )
    app.router.redirect_slashes = False  # `classify/` is no path: a redirected POST would be an answer of no form
    return ShortCut({call: endpoint for call, endpoint in endpoints.items() if not _has_parameter(call[1])}, app)


def _handler(groups: Iterable[object], name: str) -> Handler:
    handler: Handler = next(getattr(group, name) for group in groups if hasattr(group, name))
    return handler


Refused = Callable[[IntentGraphError], None]
"""Counts a request whose caller is refused."""


def _refused(service: IntentService, feedback: FeedbackService) -> Mapping[str, Refused]:
    """Of the calls that are counted: there a refused caller counts as whatever else is refused."""

    def classification(_error: IntentGraphError) -> None:
        service.refuse()

    return {
        "classify": classification,
        "classify_batch": classification,
        "feedback": partial(feedback.refuse, "unknown"),
    }


def _behind(admission: Admission, call: Call, handler: Handler, refused: Refused | None) -> Handler:
    """The handler, for whoever is admitted."""
    if (scope := call.scope) is None:
        return handler

    async def admitted(request: Request) -> Response:
        try:
            admission.admit(request.scope, scope)
        except IntentGraphError as error:
            if refused:
                refused(error)
            raise
        return await handler(request)

    return admitted


def _routes(endpoints: Mapping[tuple[str, str], Handler]) -> list[Route]:
    """One route a path, so that a method it does not take is told of all that it takes."""
    by_path: dict[str, dict[str, Handler]] = {}
    for (method, path), endpoint in endpoints.items():
        by_path.setdefault(path, {})[method] = endpoint
    # Literal paths first: `feedback/erase` is no feedback id.
    return [
        Route(path, _by_method(by_path[path]), methods=list(by_path[path]))
        for path in sorted(by_path, key=_has_parameter)
    ]


def _has_parameter(path: str) -> bool:
    return "{" in path


def _by_method(endpoints: Mapping[str, Handler]) -> Handler:
    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


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
        self._openapi = to_json(document(calls_of(settings), needs_key=settings.api_keys_file is not None))
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
            return parse(model, await read_body(request, self._settings.max_body_bytes))
        except IntentGraphError:
            self._service.refuse()
            raise

    async def _answers(self, request: Request, texts: tuple[str, ...]) -> Answers:
        request.state.log = {"texts": texts}
        try:
            options: dict[str, Any] = {
                "policy": CachePolicy.from_header(",".join(request.headers.getlist("cache-control"))),
                "scores": flag(request, "scores"),
                "timeout_s": timeout_s(request),
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
        return json_response(self._types)

    async def purge(self, request: Request) -> Response:
        """Delete kept predictions."""
        payload = parse(contract.PurgeRequest, await read_body(request, self._settings.max_body_bytes))
        purged = await self._service.purge(payload)
        request.state.log = {"deleted": purged.deleted}
        return json_response(to_json(purged.model_dump()))

    async def warm(self, request: Request) -> Response:
        """Compute predictions and keep them."""
        limit_s = timeout_s(request)
        body = await read_body(request, contract.MAX_WARM_BODY_BYTES)
        # On a thread: a thousand long texts take a quarter of a second, in which this replica would answer nobody.
        payload = await asyncio.to_thread(parse, contract.WarmRequest, body)
        warmed = (await self._service.warm(payload, timeout_s=limit_s)).model_dump()
        request.state.log = warmed
        return json_response(to_json(warmed))

    async def live(self, _request: Request) -> Response:
        """Answer; that is the point."""
        return json_response(to_json({"status": "ok", "parts": {}}))

    async def ready(self, _request: Request) -> Response:
        """Say whether the service can classify."""
        return await self._health({"details"})

    async def health(self, _request: Request) -> Response:
        """Say how every part is, with details."""
        return await self._health(set())

    async def _health(self, without: set[str]) -> Response:
        health = await self._probes.health()
        body = health.model_dump(exclude=without, exclude_none=True)
        return json_response(to_json(body), 503 if health.status == "unavailable" else 200)

    async def metrics(self, _request: Request) -> Response:
        """Sum the metrics of all replicas."""
        return Response(await self._probes.metrics(), media_type=EXPOSITION)

    async def openapi(self, _request: Request) -> Response:
        """Describe this interface."""
        return json_response(self._openapi)


def _answered(answers: Answers, body: bytes) -> Response:
    timing = ", ".join(f"{stage};dur={spent_ms:.3f}" for stage, spent_ms in answers.stages.spent_ms.items())
    return json_response(body, headers={"X-Cache": ", ".join(answers.cache_states), "Server-Timing": timing})
