"""One line in the log for each request, and a stack for each defect.

Texts are people's own words: the line carries their number and lengths, never the texts, unless a setting says so.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from deployments.http.admission import CALLER
from deployments.http.problems import problem

CLIENT_CLOSED_REQUEST = 499

Handler = Callable[..., Awaitable[Response]]

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

logger = logging.getLogger(__name__)


class Lines(Protocol):
    """Takes one line a request."""

    def write(self, message: str, fields: Mapping[str, Any]) -> None:
        """Have it written, soon; `fields` are plain JSON values."""


class LoggedLines:
    """Writes through `logging`, with the fields as the record's own."""

    def write(self, message: str, fields: Mapping[str, Any]) -> None:
        """Write it."""
        logger.info(message, extra=dict(fields))


class RequestLog:
    """Runs handlers, turns what they raise into problem+json, and logs how each request went."""

    def __init__(self, lines: Lines, *, log_texts: bool) -> None:
        self._lines = lines
        self._log_texts = log_texts

    def around(self, handler: Handler) -> Handler:
        """The endpoint for a handler; what else Starlette passes, an exception for its handlers, is passed on."""

        async def endpoint(request: Request, *context: Exception) -> Response:
            started = time.perf_counter()
            status = CLIENT_CLOSED_REQUEST
            try:
                response = await self._respond(handler, request, *context)
                status = response.status_code
            finally:
                # Also when the client went away and the handler was cancelled.
                noted = getattr(request.state, "log", {})
                self.write(request.scope, request_id(request), status, time.perf_counter() - started, noted)
            return response

        return endpoint

    async def _respond(self, handler: Handler, request: Request, *context: Exception) -> Response:
        try:
            return await handler(request, *context)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it
        except Exception as error:
            response = problem(error)
            if response.status_code == 500:  # noqa: PLR2004
                logger.exception("request failed", extra={"http_request_id": request_id(request)})
            return response

    def write(self, scope: Scope, request_id: str, status: int, duration_s: float, noted: Mapping[str, Any]) -> None:
        """Write a request's line: of its caller the name, of the texts it was about, in `noted`, their lengths."""
        fields = {
            "http_request_id": request_id,
            "route": scope["path"],
            "status": status,
            "duration_ms": round(duration_s * 1000, 3),
            **noted,
        }
        caller = scope.get(CALLER)
        if caller is not None and caller.name:
            fields["caller"] = caller.name
        if texts := fields.pop("texts", ()):
            fields["text_lengths"] = [len(text) for text in texts]
            if self._log_texts:
                fields["texts"] = texts
        self._lines.write(f"{scope['method']} {scope['path']} {status}", fields)


def request_id(request: Request) -> str:
    """The request's id as Serve's middleware set it, for the log."""
    return loggable(request.headers.get("x-request-id", ""))


def loggable(request_id: str) -> str:
    """A request's id, unless it could forge a log line."""
    return request_id if _SAFE_REQUEST_ID.fullmatch(request_id) else "unsafe"
