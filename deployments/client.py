"""One client, two ways in: HTTP from anywhere, a deployment handle from a Ray job on the same cluster.

    async with HttpClient("http://127.0.0.1:8000") as client:
        answer = await client.classify("Write a haiku about autumn")

Both give plain dicts, and raise the same builtin exceptions as the graph's own methods: `ValueError`, `TimeoutError`,
`RuntimeError` with the error's slug first; `HttpClient` also `ConnectionError`.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote, urlencode

import aiohttp

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

API = "/api/v1/intents"
RETRIED_STATUSES = (429, 503)
MAX_RETRY_AFTER_S = 10.0
MAX_PAGE = 1000
"""Records the service gives at once."""


class IntentClient(Protocol):
    """What both clients offer."""

    async def classify(self, text: str) -> dict[str, Any]:
        """The classification of one text."""

    async def classify_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The classifications of up to 100 texts, in their order."""

    async def submit_feedback(self, record: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Record a correction or confirmation; the receipt means it is on disk."""

    async def feedback_stats(self) -> dict[str, Any]:
        """Counts over the feedback log."""


class HttpClient:
    """Talks to the ingress over HTTP; waits and tries again when the service says it is overloaded or a part is away.

    Args:
        url: where the service listens, such as `http://127.0.0.1:8000`.
        api_key: what a service with keys asks for, `ig_…`; no message or repr shows it.
        timeout_s: time one attempt may take.
        attempts: how often a request is sent at most.

    Raises:
        ValueError: the key holds what no key holds.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 45.0, attempts: int = 3) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | _authorization(api_key)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._attempts = attempts
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def classify(self, text: str) -> dict[str, Any]:
        """See `IntentClient`."""
        return await self._call("POST", "/classify", {"text": text})

    async def classify_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """See `IntentClient`."""
        answer = await self._call("POST", "/classify/batch", {"texts": list(texts)})
        return list(answer["results"])

    async def submit_feedback(self, record: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """See `IntentClient`. Without a key one is drawn, so that a retry cannot record twice."""
        key = idempotency_key or uuid.uuid4().hex
        return await self._call("POST", "/feedback", dict(record), {"Idempotency-Key": key})

    async def feedback_stats(self) -> dict[str, Any]:
        """See `IntentClient`."""
        return await self._call("GET", "/feedback/stats")

    async def feedback(
        self, *, after: str = "0-0", state: str | None = None, page: int = MAX_PAGE
    ) -> AsyncGenerator[dict[str, Any]]:
        """The records after a cursor, of one state if that is given, in the order of the log; asked for page by page.

        A cursor is the `feedback_id` of a record, and of the last one came to where to go on from.
        """
        cursor: str | None = after
        while cursor:
            query = {"after": cursor, "limit": str(page)} | ({"state": state} if state else {})
            answer = await self._call("GET", f"/feedback?{urlencode(query)}")
            for record in answer["items"]:
                yield record
            cursor = answer["next"]

    async def approve_feedback(self, feedback_id: str) -> None:
        """Have a correction that waits served."""
        await self._call("POST", f"{_record(feedback_id)}/approve")

    async def reject_feedback(self, feedback_id: str) -> None:
        """Have a correction that waits never served."""
        await self._call("POST", f"{_record(feedback_id)}/reject")

    async def delete_feedback(self, feedback_id: str) -> None:
        """Delete a record and what it changed; one that is not there is a `ValueError`."""
        await self._call("DELETE", _record(feedback_id))

    async def erase_feedback(self, user_id: str) -> int:
        """Delete all records of a user; give how many, in the last attempt."""
        return int((await self._call("POST", "/feedback/erase", {"user_id": user_id}))["deleted"])

    async def acknowledge_feedback(self, feedback_id: str) -> int:
        """Say that what came up to a record was trained on; give how many came after it."""
        answer = await self._call("POST", "/feedback/ack", {"feedback_id": feedback_id})
        return int(answer["total_pending_feedback"])

    async def purge(self, texts: Sequence[str]) -> int:
        """Delete the kept predictions of up to 1,000 texts; give how many there were."""
        return int((await self._call("POST", "/cache/purge", {"texts": list(texts)}))["deleted"])

    async def purge_all(self) -> int:
        """Delete every kept prediction; give how many there were, in the last attempt."""
        return int((await self._call("POST", "/cache/purge", {"all": True}))["deleted"])

    async def warm(self, texts: Sequence[str]) -> dict[str, int]:
        """Have the predictions of up to 1,000 texts kept; give the numbers `requested`, `already_cached`, `computed`.

        What an attempt computed that did not come to its end, the next one counts as already cached.
        """
        return await self._call("POST", "/cache/warm", {"texts": list(texts)})

    async def _call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        for attempt in range(1, self._attempts + 1):
            try:
                status, answer, retry_after_s = await self._send(method, path, body, headers)
            except aiohttp.ClientConnectionError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ConnectionError(f"{self._url} cannot be reached: {error}") from error
            if status not in RETRIED_STATUSES or attempt == self._attempts:
                break
            await asyncio.sleep(min(retry_after_s, MAX_RETRY_AFTER_S))
        if status < 400:  # noqa: PLR2004
            return answer
        raise _error(status, answer)

    async def _send(
        self, method: str, path: str, body: object, headers: Mapping[str, str] | None
    ) -> tuple[int, dict[str, Any], float]:
        if self._session is None:
            raise RuntimeError("use the client in `async with HttpClient(url) as client:`")
        # UTF-8 as it is: escaped, a text beyond ASCII takes twice the bytes of the body's limit.
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        async with self._session.request(method, f"{self._url}{API}{path}", data=data, headers=headers) as response:
            # HAProxy's own errors are not JSON: its text then stands for the detail.
            is_json = response.content_type.endswith("json")
            answer = await response.json(content_type=None) if is_json else {"detail": await response.text()}
            return response.status, answer, _seconds(response.headers.get("Retry-After", ""))


def _seconds(retry_after: str) -> float:
    """A wait in seconds; 1 for the other form, a date (RFC 9110, 10.2.3), which no part of the service sends."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 1.0


def _record(feedback_id: str) -> str:
    return f"/feedback/{quote(feedback_id, safe='')}"


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()  # a file or variable it comes from may end with a newline
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the API key holds blanks or letters that no key holds; it is `ig_…` as it was printed")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _error(status: int, answer: Mapping[str, Any]) -> Exception:
    message = f"{answer.get('type', status)}: {answer.get('detail', '')}"
    if answer.get("type") == "deadline-exceeded":
        return TimeoutError(message)
    if 400 <= status < 500 and status not in RETRIED_STATUSES:  # noqa: PLR2004
        return ValueError(message)
    return RuntimeError(message)


class HandleClient:
    """Calls the ingress deployment of an application on the Ray cluster this process is connected to."""

    def __init__(self, handle: "DeploymentHandle | None" = None, *, application: str = "intents") -> None:
        if handle is None:
            from ray import serve

            handle = serve.get_app_handle(application)
        self._handle: Any = handle

    async def classify(self, text: str) -> dict[str, Any]:
        """See `IntentClient`."""
        return dict(await self._handle.classify.remote(text))

    async def classify_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """See `IntentClient`."""
        return list(await self._handle.classify_batch.remote(list(texts)))

    async def submit_feedback(self, record: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """See `IntentClient`."""
        return dict(await self._handle.submit_feedback.remote(dict(record), idempotency_key))

    async def feedback_stats(self) -> dict[str, Any]:
        """See `IntentClient`."""
        return dict(await self._handle.feedback_stats.remote())
