"""Errors as HTTP answers: RFC 9457 problem details, one for each class of `core.errors`."""

import math
from typing import Any

from starlette.responses import Response

from deployments.core.classification import to_json
from deployments.core.errors import IntentGraphError, Internal, InvalidInput, MethodNotAllowed, Unauthorized

MEDIA_TYPE = "application/problem+json"
CHALLENGE = 'Bearer realm="intents"'


def problem(error: Exception) -> Response:
    """The answer for an error; one without a status of its own is a 500 that tells nothing of its cause."""
    known = error if isinstance(error, IntentGraphError) else Internal("the service failed; its log has the cause")
    body: dict[str, Any] = {
        "type": known.slug,
        "title": known.title,
        "status": known.status,
        "detail": known.detail,
    }
    if isinstance(known, InvalidInput) and known.errors:
        body["errors"] = known.errors
    return Response(to_json(body), known.status, _headers(known), MEDIA_TYPE)


def _headers(error: IntentGraphError) -> dict[str, str]:
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allowed}
    if isinstance(error, Unauthorized):  # RFC 6750, section 3: an error code only where a key was sent
        return {"WWW-Authenticate": CHALLENGE + (', error="invalid_token"' if error.sent else "")}
    if error.retryable:
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    return {}
