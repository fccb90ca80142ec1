"""Where calls go: the service's HTTP ingress, or a deployment handle of a Ray cluster.

A target sends one call and says what became of it. It knows nothing of time: who measures is the worker.
"""

import asyncio
import errno
import json
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from loadgen.load import HANDLE, Load, LoadError, authorization
from loadgen.report import HIT_SERIES
from loadgen.traffic import Call

PURGE_TIMEOUT_S = 60.0
CACHE_STATES = frozenset({*HIT_SERIES, "miss", "correction", "bypass"})
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)
OWN_FAULT = "the load generator ran out of files or ports: "
OVERLOADED, CLIENT_ERROR, SERVER_ERROR = 429, 400, 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    `series` is "answered", or one of `report.FAILED_SERIES`. `caches` has the cache state of each text of an answered
    call. `counted`: the service itself answered, so its counters must show it; false when a proxy or nobody did.
    """

    series: str
    caches: tuple[str, ...] = ()
    counted: bool = True
    detail: str = ""


class Target(Protocol):
    """A way to the service."""

    async def open(self) -> None:
        """Connect.

        Raises:
            LoadError: there is nothing to connect to.
        """

    async def probe(self) -> str:
        """Send one text; the intent answered, which feedback records need.

        Raises:
            LoadError: nobody answers, or with a refusal.
        """

    async def send(self, call: Call) -> Outcome:
        """Send a call. Its failures are outcomes; only cancellation is raised."""

    async def purge(self) -> int:
        """Empty the service's prediction cache; how many predictions it held.

        Raises:
            LoadError: the service cannot or will not.
        """

    async def close(self) -> None:
        """Disconnect."""


def target_of(load: Load, intent: str = "") -> Target:
    """The target that the load names; its feedback records say `intent`, one that the service has answered with."""
    if load.by_handle:
        return HandleTarget(load.target.removeprefix(HANDLE), load.timeout_s, intent)
    return HttpTarget(load.target, load.timeout_s, load.api_path, intent, no_store=load.no_store)


class HttpTarget:
    """The service over HTTP, over as many connections as calls are under way: no queue in the client."""

    def __init__(self, url: str, timeout_s: float, api_path: str, intent: str, *, no_store: bool = False) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json"} | ({"Cache-Control": "no-store"} if no_store else {})
        self._classify, self._batch, self._feedback, self._purge = (
            f"{url}{api_path}/{call}" for call in ("classify", "classify/batch", "feedback", "cache/purge")
        )
        self._timeout_s = timeout_s
        self._intent = intent
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """See `Target`."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=self._headers | authorization(),
        )

    async def probe(self) -> str:
        """See `Target`."""
        assert self._session
        try:
            async with self._session.post(self._classify, data=_json({"text": PROBE})) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise LoadError(f"nothing answers at {self._url}: {reason(error)}") from error
        if response.status >= CLIENT_ERROR:
            answer = body[:200].decode(errors="replace")
            raise LoadError(f"{self._classify} answers {response.status} to a plain text: {answer}")
        return _intent(body)

    async def send(self, call: Call) -> Outcome:
        """See `Target`."""
        assert self._session
        url, body = self._request(call)
        try:
            async with self._session.post(url, data=body) as response:
                await response.read()
                return _outcome(response, len(call.texts))
        except TimeoutError:
            return Outcome("timeout", counted=False, detail=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            own = OWN_FAULT if getattr(error, "errno", None) in EXHAUSTED else ""
            return Outcome("connection", counted=False, detail=own + reason(error))

    def _request(self, call: Call) -> tuple[str, bytes]:
        if call.kind == "classify":
            return self._classify, _json({"text": call.texts[0]})
        if call.kind == "batch":
            return self._batch, _json({"texts": call.texts})
        return self._feedback, _json(record(call, self._intent))

    async def purge(self) -> int:
        """See `Target`."""
        assert self._session
        timeout = aiohttp.ClientTimeout(total=PURGE_TIMEOUT_S)
        try:
            async with self._session.post(self._purge, data=_json({"all": True}), timeout=timeout) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise LoadError(f"the cache of {self._url} was not purged: {reason(error)}") from error
        if response.status >= CLIENT_ERROR:
            answer = body[:200].decode(errors="replace")
            raise LoadError(f"the cache of {self._url} was not purged: {response.status} {answer}")
        return int(json.loads(body)["deleted"])

    async def close(self) -> None:
        """See `Target`."""
        if self._session:
            await self._session.close()


def _outcome(response: aiohttp.ClientResponse, texts: int) -> Outcome:
    status = response.status
    if status < CLIENT_ERROR:
        return Outcome("answered", _cache_states(response.headers.get("X-Cache", ""), texts))
    detail = f"status {status}"
    if status == OVERLOADED:
        return Outcome("shed", detail=detail)
    # A refusal of the service is problem+json (RFC 9457); a plain one is of a proxy before it, which counts nothing.
    counted = "problem+json" in response.headers.get("Content-Type", "")
    return Outcome("rejected" if status < SERVER_ERROR else "server_error", counted=counted, detail=detail)


def _cache_states(header: str, texts: int) -> tuple[str, ...]:
    """A state for each text; all unknown when the header is not the service's, for proxies write one of that name."""
    states = tuple(state.strip() for state in header.split(","))
    known = len(states) == texts and CACHE_STATES.issuperset(states)
    return states if known else ("unknown",) * texts


class HandleTarget:
    """The service over a deployment handle, as another Ray job calls it; where its cluster is, `RAY_ADDRESS` says.

    A handle's answers say nothing of the cache, so their cache state is `unknown`.
    """

    def __init__(self, application: str, timeout_s: float, intent: str) -> None:
        self._application = application
        self._timeout_s = timeout_s
        self._intent = intent
        self._handle: Any = None

    async def open(self) -> None:
        """See `Target`."""
        await asyncio.to_thread(self._connect)

    async def probe(self) -> str:
        """See `Target`."""
        try:
            answer = await asyncio.wait_for(self._handle.classify.remote(PROBE), self._timeout_s)
        except Exception as error:
            raise LoadError(f"application {self._application!r} does not classify: {reason(error)}") from error
        return str(answer["intent"])

    def _connect(self) -> None:
        import ray
        from ray import serve

        try:
            ray.init("auto", log_to_driver=False, ignore_reinit_error=True, logging_level="ERROR")
            self._handle = serve.get_app_handle(self._application)
        except Exception as error:
            raise LoadError(
                f"no application {self._application!r} on a Ray cluster at RAY_ADDRESS (`intents up` prints the"
                f" variables to set): {reason(error)}"
            ) from error

    async def send(self, call: Call) -> Outcome:
        """See `Target`."""
        response = None
        try:
            response = self._call(call)
            async with asyncio.timeout(self._timeout_s):
                await response
        except TimeoutError as error:
            return self._timed_out(response, error)
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except Exception as error:  # noqa: BLE001 — every failure of a call is an outcome of it
            return _failure(error)
        return Outcome("answered", ("unknown",) * len(call.texts))

    def _call(self, call: Call) -> Any:
        if call.kind == "classify":
            return self._handle.classify.remote(call.texts[0])
        if call.kind == "batch":
            return self._handle.classify_batch.remote(list(call.texts))
        return self._handle.submit_feedback.remote(record(call, self._intent))

    def _timed_out(self, response: Any, error: TimeoutError) -> Outcome:
        if str(error):  # the service's own words; ours has none
            return Outcome("server_error", detail=reason(error))
        response.cancel()
        return Outcome("timeout", counted=False, detail=f"no answer within {self._timeout_s:g} s")

    async def purge(self) -> int:
        """See `Target`."""
        raise LoadError("a handle cannot purge the cache; do it over HTTP, or take fresh texts")

    async def close(self) -> None:
        """See `Target`."""
        import ray

        await asyncio.to_thread(ray.shutdown)


def _failure(error: Exception) -> Outcome:
    """The outcome behind an exception of the service's handle methods: builtin ones, the error's slug first."""
    slug = str(getattr(error, "cause", error)).partition(":")[0]
    if isinstance(error, ValueError):
        return Outcome("rejected", detail=reason(error))
    if isinstance(error, RuntimeError) and slug == "overloaded":
        return Outcome("shed", detail=slug)
    if isinstance(error, RuntimeError) and slug in ("unavailable", "internal", "deadline-exceeded"):
        return Outcome("server_error", detail=slug)
    return Outcome("connection", counted=False, detail=reason(error))


PROBE = "Is anybody there?"


def record(call: Call, intent: str) -> dict[str, Any]:
    """A feedback record that any label set takes: its intent is one the service has answered with."""
    fields = {
        "text": call.texts[0],
        "original_intent": intent,
        "correct_intent": intent,
        "original_confidence": 0.5,
        "feedback_type": "confirmation",
    }
    return fields | ({"feedback_type": "correction", "correct_complexity": "complex"} if call.correction else {})


def reason(error: BaseException) -> str:
    """An exception in a few words on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words[:200]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _intent(body: bytes) -> str:
    try:
        return str(json.loads(body)["intent"])
    except (ValueError, KeyError, TypeError):
        return ""  # a target that answers otherwise can be measured too, but takes no feedback
