"""Rows of a file that people write: one JSON object a line, and each fault told with its place and what to do."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from deployments.core.errors import StartupError

LONE_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def parse_object(line: str, place: str, *, example: str) -> dict[str, Any]:
    """The object on a line.

    Raises:
        StartupError: `place` (`file:line`) and what is wrong: not JSON, or no object such as `example`.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of more digits than Python reads
        raise StartupError(f"{place}: not JSON ({error}); put one object on the line") from error
    if not isinstance(fields, dict):
        raise StartupError(f"{place}: a JSON object is expected; write {example}")
    return fields


def string_field(fields: Mapping[str, Any], name: str, place: str) -> str | None:
    """A field of a row; None where it has none.

    Raises:
        StartupError: `place`, and that it is no string or no Unicode text.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise StartupError(f"{place}: {name!r} is {value!r}; write a string")
    if value and LONE_SURROGATE.search(value):
        raise StartupError(f"{place}: {name!r} holds half a surrogate pair (\\ud800 to \\udfff); remove it")
    return value
