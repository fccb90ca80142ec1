"""What a request carries and a response is made of: bodies, headers and query parameters, each with its limits."""

from collections.abc import Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deployments.core.errors import InvalidInput, TooLarge

MAX_IDEMPOTENCY_KEY = 255
SERVE_TIMEOUT_MARGIN_S = 0.1


async def read_body(request: Request, max_bytes: int) -> bytes:
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


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of ready JSON."""
    return Response(body, status, headers, "application/json")


def flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false. Raises InvalidInput (422)."""
    if not request.scope["query_string"]:  # of nearly every request; parsing nothing costs 15 µs
        return False
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise InvalidInput(f"query parameter {name} is {value[:32]!r}; send true or false")
    return value in ("true", "1")


def timeout_s(request: Request) -> float | None:
    """The seconds a caller waits, less a margin. Raises InvalidInput (422)."""
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


def idempotency_key(request: Request) -> str | None:
    """The caller's key. Raises InvalidInput (422)."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidInput(f"header Idempotency-Key has {len(key)} characters; send 1 to {MAX_IDEMPOTENCY_KEY}")
    return key


def number(request: Request, name: str, *, default: int, highest: int) -> int:
    """A query parameter from 1 to `highest`. Raises InvalidInput (422)."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(highest)) and 1 <= int(value) <= highest):
        raise InvalidInput(f"query parameter {name} is {value[:32]!r}; send a number from 1 to {highest:,}")
    return int(value)


def one_of(request: Request, name: str, choices: Sequence[str]) -> str | None:
    """A query parameter that is one of `choices`, or absent. Raises InvalidInput (422)."""
    value = request.query_params.get(name)
    if value is not None and value not in choices:
        raise InvalidInput(f"query parameter {name} is {value[:32]!r}; send one of {', '.join(choices)}")
    return value
