"""The OpenAPI 3.1 document, made from the table of calls and the pydantic models."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.core import errors
from deployments.core.contract import MAX_FEEDBACK_PAGE, MAX_PATTERN_DAYS, Problem
from deployments.core.log_layout import FIRST_ID
from deployments.http.feedback import DEFAULT_DAYS, DEFAULT_PAGE, STATES

if TYPE_CHECKING:
    from deployments.http.app import Call

_REF = "#/components/schemas/{model}"
_KEY = {"type": "http", "scheme": "bearer", "description": "An API key, `ig_…`, with the scope that the call needs."}
_REFUSED_CALLERS = (401, 403)
_TITLES = {
    error.status: error.title
    for error in (
        errors.BadRequest,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.Gone,
        errors.TooLarge,
        errors.InvalidInput,
        errors.Overloaded,
        errors.Unavailable,
        errors.Internal,
    )
}
_PATH_PARAMETERS = re.compile(r"{(\w+)}")
_PARAMETERS: dict[str, dict[str, Any]] = {
    "scores": {"type": "boolean", "default": False},
    "after": {"type": "string", "default": FIRST_ID, "pattern": r"^\d{1,18}-\d{1,18}$"},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_FEEDBACK_PAGE, "default": DEFAULT_PAGE},
    "state": {"type": "string", "enum": list(STATES)},
    "days": {"type": "integer", "minimum": 1, "maximum": MAX_PATTERN_DAYS, "default": DEFAULT_DAYS},
}
"""What is known of a parameter beside its name; others are strings."""


def document(calls: Iterable["Call"], *, needs_key: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for `calls`; where the service `needs_key`, with the scope that each call's key must have."""
    calls = list(calls)
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        security = {"security": [{"key": [call.scope]}] if call.scope else []} if needs_key else {}
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call) | security
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "intentgraph",
            "version": "1",
            "summary": "Tells what a text sent to a language model asks for: intent, complexity, prompting techniques.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(calls)} | ({"securitySchemes": {"key": _KEY}} if needs_key else {}),
    }


def _schemas(calls: list["Call"]) -> dict[str, Any]:
    takes = [(call.takes, "validation") for call in calls if call.takes]
    gives = [(call.gives, "serialization") for call in calls if call.gives]
    wanted: dict[Any, None] = dict.fromkeys([*takes, *gives, (Problem, "serialization")])
    _, definitions = models_json_schema(list(wanted), ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _operation(call: "Call") -> dict[str, Any]:
    refuses = sorted({*call.refuses, *(_REFUSED_CALLERS if call.scope else ())})
    operation: dict[str, Any] = {
        "operationId": call.handler,
        "summary": call.summary,
        "parameters": [_parameter(name, "path", required=True) for name in _PATH_PARAMETERS.findall(call.path)]
        + [_parameter(name, "header") for name in call.headers]
        + [_parameter(name, "query") for name in call.query],
        "responses": {str(status): _response(call.summary, call.gives) for status in call.answers}
        | {str(status): _refusal(status, call) for status in refuses},
    }
    if call.takes:
        operation["requestBody"] = {"required": True, "content": _content("application/json", call.takes)}
    return operation


def _parameter(name: str, place: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": _PARAMETERS.get(name, {"type": "string"})}


def _response(description: str, model: type[BaseModel] | None) -> dict[str, Any]:
    if model is None:
        return {"description": description}
    return {"description": description, "content": _content("application/json", model)}


def _refusal(status: int, call: "Call") -> dict[str, Any]:
    if call.path.startswith("/health"):
        return _response("No model can answer", call.gives)
    return {"description": _TITLES[status], "content": _content("application/problem+json", Problem)}


def _content(media_type: str, model: type[BaseModel]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REF.format(model=model.__name__)}}}
