"""From JSON to a validated model, or an error that says what to change.

HTTP bodies and the arguments of Python handles go the same way, so that both take and refuse the same things.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deployments.core.errors import BadRequest, InvalidInput

M = TypeVar("M", bound=BaseModel)

MAX_ERRORS_SHOWN = 20

_MESSAGES: dict[str, Callable[[Any, dict[str, Any]], str]] = {
    "string_too_long": lambda given, ctx: (
        f"has {len(given):,} characters; the limit is {ctx['max_length']:,}; split or shorten it"
    ),
    "string_too_short": lambda _given, _ctx: "is empty; send at least one visible character",
    "too_long": lambda _given, ctx: (
        f"has {ctx['actual_length']:,} items; the limit is {ctx['max_length']:,}; send them in several requests"
    ),
    "too_short": lambda _given, ctx: f"has {ctx['actual_length']:,} items; send at least {ctx['min_length']:,}",
    "value_error": lambda _given, ctx: str(ctx["error"]),
}
"""Messages that name the value, the limit and the remedy, where pydantic's own do not."""


def parse(model: type[M], body: bytes) -> M:
    """Validate `body` as `model`.

    Raises:
        BadRequest: not UTF-8, or not JSON.
        InvalidInput: JSON, but not what `model` takes.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _explained(error, body) from None


def _explained(error: ValidationError, body: bytes) -> BadRequest | InvalidInput:
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "json_invalid":
        lone = "hex escape" in first["msg"] and _is_json(body)
        return (
            InvalidInput("a text holds a lone surrogate; send whole characters") if lone else BadRequest(first["msg"])
        )
    errors = [_explained_item(item) for item in details[:MAX_ERRORS_SHOWN]]
    where = ".".join(str(part) for part in errors[0]["loc"][1:]) or "body"
    return InvalidInput(f"{where}: {errors[0]['msg']}", errors=errors)


def _is_json(body: bytes) -> bool:
    """Whether it is JSON to a reader that takes lone surrogates, which JSON's grammar allows and Unicode does not."""
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _explained_item(item: ErrorDetails) -> dict[str, Any]:
    explain = _MESSAGES.get(item["type"])
    message = explain(item["input"], item.get("ctx", {})) if explain else item["msg"]
    return {"loc": ["body", *item["loc"]], "msg": message}
