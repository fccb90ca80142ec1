"""Hits are answered in front of Serve: before it begins its own work on a request.

Serve's HTTP server in a replica goes through `middlewares` first, when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names
it. A text whose answer is at hand needs nothing of what Serve does then: no task of its own, no place among the ongoing
requests, no watch over whether its caller leaves. Everything else goes on to Serve as it came, and so does every
request in a process that is no ingress replica. Without that variable the answers are the same; a hit takes longer.
"""

import asyncio
import time
import uuid

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.core.contract import ClassifyRequest
from deployments.core.errors import IntentGraphError
from deployments.core.parsing import parse
from deployments.core.service import IntentService
from deployments.http.request_log import RequestLog, loggable

OF_OTHER_CALLS = (b"cache-control", b"x-request-timeout-seconds")
"""Headers that ask for more than a ready answer."""


class Front:
    """Answers the calls for one text that an ingress replica has at hand. Make it in the replica's event loop."""

    def __init__(self, path: str, service: IntentService, log: RequestLog) -> None:
        self._path = path
        self._service = service
        self._log = log
        self._loop = asyncio.get_running_loop()

    def may_answer(self, scope: Scope) -> bool:
        """Whether it is such a call; other event loops than the service's may not touch its memory."""
        return (
            scope["type"] == "http"
            and scope["path"] == self._path
            and scope["method"] == "POST"
            and not scope["query_string"]
            and asyncio.get_running_loop() is self._loop
        )

    def answer(self, scope: Scope, message: Message) -> tuple[Message, Message] | None:
        """The response to a request whose body is in `message`; None leaves it to the application, errors too."""
        started_s = time.perf_counter()
        request_id = None
        for name, value in scope["headers"]:
            if name in OF_OTHER_CALLS:
                return None
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
        if message.get("more_body", False) or not message.get("body"):
            return None
        try:
            text = parse(ClassifyRequest, message["body"]).text
        except IntentGraphError:
            return None
        found = self._service.at_hand(text)
        if found is None:
            return None
        request_id = request_id or str(uuid.uuid4())
        duration_s = time.perf_counter() - started_s
        noted = {"cache": [found.cache_state], "texts": (text,)}
        self._log.write(scope, loggable(request_id), 200, duration_s, noted)
        headers = [
            (b"x-cache", found.cache_state.encode()),
            (b"server-timing", b"local;dur=%.3f" % (duration_s * 1000)),
            (b"content-length", b"%d" % len(found.body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode("latin-1")),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        return start, {"type": "http.response.body", "body": found.body}


class FrontMiddleware:
    """Lets the process's `Front`, if there is one, answer before `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        front = _fronts[-1] if _fronts else None
        if front is None or not front.may_answer(scope):
            await self._app(scope, receive, send)
            return
        message = await receive()
        if messages := front.answer(scope, message):
            for each in messages:
                await send(each)
        else:
            await self._app(scope, _from(message, receive), send)


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
