"""Hits are answered in front of Serve, before it begins its own work on a request, and so is feedback.

    text ── at hand? ── kept? ── Serve ── the application, which need not look again
    feedback record ── the application

Serve's HTTP server in a replica goes through `middlewares` first, when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names
it. A text whose prediction is kept, or a record that is on disk in some milliseconds, needs nothing of what Serve does
then: no task of its own, no place among the ongoing requests, no watch over whether its caller leaves. Everything else
goes on to Serve, and so does every request in a process that is no ingress replica. Without that variable the answers
are the same, save that Serve fails on some headers that are no UTF-8, and take longer.
"""

import asyncio
import logging
import time
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.core.contract import ClassifyRequest
from deployments.core.errors import IntentGraphError
from deployments.core.parsing import parse
from deployments.core.service import Answer, IntentService, LookedUp
from deployments.http.admission import Admission
from deployments.http.app import API, LOOKED_UP
from deployments.http.request_log import RequestLog, loggable

logger = logging.getLogger(__name__)

CLASSIFY = f"{API}/classify"
FEEDBACK = f"{API}/feedback"
OF_OTHER_CALLS = (b"cache-control", b"x-request-timeout-seconds")
"""Headers that ask for more than a ready answer."""


class Front:
    """Answers the calls for one text whose prediction is kept, and has `app` answer feedback records.

    Make it in the replica's event loop. `looks_up` is false where caching is off.
    """

    def __init__(
        self, service: IntentService, app: ASGIApp, log: RequestLog, admission: Admission, *, looks_up: bool
    ) -> None:
        self._app = app
        self._service = service
        self._admission = admission
        self._log = log
        self._looks_up = looks_up
        self._loop = asyncio.get_running_loop()

    def may_answer(self, scope: Scope) -> bool:
        """Whether it is such a call, by somebody who may."""
        return (
            self._is_post(scope, CLASSIFY) and not scope["query_string"] and self._admission.admits(scope, "classify")
        )

    def application_for(self, scope: Scope) -> ASGIApp | None:
        """What answers a feedback record, refusals too."""
        return self._app if self._is_post(scope, FEEDBACK) else None

    def _is_post(self, scope: Scope, path: str) -> bool:
        """Event loops but the service's may not touch its memory."""
        return (
            scope["type"] == "http"
            and scope["path"] == path
            and scope["method"] == "POST"
            and asyncio.get_running_loop() is self._loop
        )

    async def answer(self, scope: Scope, message: Message) -> tuple[Message, Message] | None:
        """The response to a request whose body is in `message`; None leaves it to the application, errors too."""
        started_s = time.perf_counter()
        text = self._text(scope, message)
        if text is None:
            return None
        found: Answer | LookedUp | None = self._service.at_hand(text)
        stage = b"local"
        if found is None and self._looks_up:
            found, stage = await self._service.look_up(text), b"cache"
        if not isinstance(found, Answer):
            scope[LOOKED_UP] = found
            return None
        duration_s = time.perf_counter() - started_s
        request_id = _request_id(scope)
        noted = {"cache": [found.cache_state], "texts": (text,)}
        self._log.write(scope, loggable(request_id), 200, duration_s, noted)
        headers = [
            (b"x-cache", found.cache_state.encode()),
            (b"server-timing", b"%s;dur=%.3f" % (stage, duration_s * 1000)),
            (b"content-length", b"%d" % len(found.body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode("latin-1")),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        return start, {"type": "http.response.body", "body": found.body}

    def _text(self, scope: Scope, message: Message) -> str | None:
        """The text of a request that asks for nothing but its classification, if its body is here and right."""
        if any(name in OF_OTHER_CALLS for name, _ in scope["headers"]) or message.get("more_body", False):
            return None
        try:
            return parse(ClassifyRequest, message.get("body", b"")).text
        except IntentGraphError:
            return None


def _request_id(scope: Scope) -> str:
    """The caller's own, or a new one: Serve draws one only behind this."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    return given.decode("latin-1") if given else str(uuid.uuid4())


class FrontMiddleware:
    """Lets the process's `Front`, if there is one, answer before `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope = _readable(scope)
        front = _fronts[-1] if _fronts else None
        if front is not None and (app := front.application_for(scope)):
            await _answer_whole(app, scope, receive, send)
            return
        if front is None or not front.may_answer(scope):
            await self._app(scope, receive, send)
            return
        message = await receive()
        for each in (response := await self._answer(front, scope, message)):
            await send(each)
        if not response:
            await self._app(scope, _from(message, receive), send)

    @staticmethod
    async def _answer(front: Front, scope: Scope, message: Message) -> tuple[Message, ...]:
        try:
            return await front.answer(scope, message) or ()
        except Exception:  # whatever it is, the application behind knows what to say
            logger.exception("answering in front of Serve failed")
            return ()


async def _answer_whole(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Have `app` answer, with the request's id as Serve's own middleware sets it: for the log and for the caller."""
    header = b"x-request-id", _request_id(scope).encode("latin-1")
    others = [(name, value) for name, value in scope["headers"] if name != header[0]]

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], header]}
        await send(message)

    await app({**scope, "headers": [*others, header]}, receive, send_with_id)


def _readable(scope: Scope) -> Scope:
    """The request, with header values that are no UTF-8 taken for Latin-1 and written as UTF-8.

    Serve reads some as UTF-8 (request id, timeout, session) and answers 500 to what is none.
    """
    if all(value.isascii() for _, value in scope.get("headers", ())):
        return scope
    return {**scope, "headers": [(name, _as_utf8(value)) for name, value in scope["headers"]]}


def _as_utf8(value: bytes) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1").encode()
    return value


_fronts: list[Front] = []  # Serve makes middlewares before there is a service, and gives them nothing to find it by


def install(front: Front) -> None:
    """Have this process's HTTP server ask `front` first."""
    _fronts[:] = [front]


def middlewares() -> list[Middleware]:
    """What Serve's HTTP servers are to go through; see the module."""
    return [Middleware(FrontMiddleware)]


def _from(message: Message, receive: Receive) -> Receive:
    """What was received already, and then the rest."""
    received = [message]

    async def receive_on() -> Message:
        return received.pop() if received else await receive()

    return receive_on
