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
                self._write(request, status, time.perf_counter() - started)
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

    def _write(self, request: Request, status: int, duration_s: float) -> None:
        noted: dict[str, Any] = dict(getattr(request.state, "log", {}))
        texts = noted.pop("texts", ())
        if texts:
            noted["text_lengths"] = [len(text) for text in texts]
        if texts and self._log_texts:
            noted["texts"] = texts
        path = request.scope["path"]
        fields = {
            "http_request_id": request_id(request),
            "route": path,
            "status": status,
            "duration_ms": round(duration_s * 1000, 3),
            **noted,
        }
        self._lines.write(f"{request.method} {path} {status}", fields)


def request_id(request: Request) -> str:
    """The request's id as Serve's middleware set it; one that could forge a log line is not repeated."""
    given = request.headers.get("x-request-id", "")
    return given if _SAFE_REQUEST_ID.fullmatch(given) else "unsafe"
