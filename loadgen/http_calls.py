"""One HTTP call at a time, for what is not measured: an answer of any status, or an OSError."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

OK, CREATED = 200, 201


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, whatever its status."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        """The body's value.

        Raises:
            ValueError: it is no JSON.
        """
        return json.loads(self.body)


def call(url: str, body: object = None, *, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> Answer:
    """POST `body` as JSON, or GET without one; on a connection of its own.

    Raises:
        OSError: nothing is answered, not all of it, or not in time.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | dict(headers or {}))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 — the user's own address
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return Answer(refusal.code, refusal.headers, refusal.read())
    except http.client.HTTPException as error:  # half an answer
        raise ConnectionError(repr(error)) from error
