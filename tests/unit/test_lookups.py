"""Look-ups by an ingress replica: over a connection, by handle while there is none, all misses when neither answers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.core import metrics
from deployments.core.errors import Unavailable
from deployments.core.prediction import Prediction, predictions_from_json, predictions_to_json
from deployments.core.rpc import Address, RpcServer
from deployments.core.settings import Settings
from deployments.lookups import MAX_FAILURES, Lookups
from tests.unit.fakes import CountingMetrics, prediction
from tests.unit.test_corrections import until


def naming(*addresses: Callable[[], Address | None]) -> Callable[[str], Any]:
    """A handle's `broadcast` to replicas with those addresses, and to one that fails."""

    async def results(*, return_exceptions: bool) -> list[object]:
        assert return_exceptions
        return [RuntimeError("on its way out"), *(address() for address in addresses)]

    return lambda _method: SimpleNamespace(results_async=results)


class CacheReplica:
    """Answers with the key as the text of each prediction, over its port if it has one, and by handle."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self.error: Exception | None = None
        self.reply: Callable[[bytes], Awaitable[bytes]] = self._reply
        self.asked = 0
        self.by_handle = 0

    async def listen(self) -> None:
        self.address = await RpcServer(self._answer).start("127.0.0.1")

    async def _answer(self, request: bytes) -> bytes:
        return await self.reply(request)

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        self.asked += 1
        if self.error:
            raise self.error
        return [None if key.startswith("absent") else prediction(key) for key in keys]

    async def _reply(self, request: bytes) -> bytes:
        return predictions_to_json(await self.get_many(request.decode().split("\n")))

    @property
    def handle(self) -> Any:
        """What Serve would give for it."""

        async def get_many(keys: Sequence[str]) -> list[Prediction | None]:
            self.by_handle += 1
            return await self.get_many(keys)

        async def ping() -> bool:
            return self.error is None

        methods = {"get_many": get_many, "ping": ping}
        remote = {name: SimpleNamespace(remote=method) for name, method in methods.items()}
        return SimpleNamespace(**remote, broadcast=naming(lambda: self.address))


async def hang(_request: object) -> Any:
    """Never answers."""
    await asyncio.Event().wait()


def lookups(replica: CacheReplica, recorder: metrics.Metrics, **settings: float) -> Lookups:
    return Lookups(Settings(lookup_timeout_ms=settings.get("lookup_timeout_ms", 5000)), replica.handle, recorder)


async def connected(asked: Lookups) -> None:
    """Wait for the connection."""
    await until(lambda: asked._channel._connections)


async def test_what_travels_comes_back_as_it_was():
    """Every digit and letter of it."""
    sent = [prediction("é\n\u2028 𝄞"), None, prediction()]

    assert predictions_from_json(predictions_to_json(sent)) == sent


async def test_look_ups_go_over_the_connection_when_there_is_one():
    """By handle before; the answers are the same."""
    replica, recorder = CacheReplica(), CountingMetrics()
    asked = lookups(replica, recorder)
    keys = ["a", "absent", "a", "b"]

    before = await asked.get_many(keys)
    assert replica.by_handle == 1
    await replica.listen()
    await connected(asked)
    assert await asked.get_many(keys) == before == [prediction("a"), None, prediction("a"), prediction("b")]
    assert replica.by_handle == 1
    assert recorder.total(metrics.CACHE_CALLS, transport="handle") == 1
    assert recorder.total(metrics.CACHE_CALLS, transport="direct") == 1


async def test_a_look_up_whose_connection_breaks_off_goes_by_handle():
    """It is no miss."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder)
    await connected(asked)

    async def hang(_request: bytes) -> bytes:
        for connection in asked._channel._connections.values():
            connection.close()
        return await asyncio.Event().wait()

    replica.reply = hang
    assert await asked.get_many(["a"]) == [prediction("a")]
    assert replica.by_handle == 1


async def test_a_cache_that_hangs_is_a_miss_in_time():
    """And its connection is given up: the next look-up goes by handle."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder, lookup_timeout_ms=50)
    await connected(asked)
    replica.reply = hang
    assert await asyncio.wait_for(asked.get_many(["a"]), 2) == [None]
    assert recorder.total(metrics.CACHE_LOOKUPS, result="error") == 1
    assert await asked.get_many(["a"]) == [prediction("a")]


@pytest.mark.parametrize(
    "reply", [b"[]", b'[{"intent": "a"}]', b"\x80", b""], ids=["few", "foreign", "binary", "empty"]
)
async def test_a_reply_that_cannot_be_read_is_a_miss(reply: bytes):
    """While an update rolls out, the cache may be of another version."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder)
    await connected(asked)

    async def other(_request: bytes) -> bytes:
        return reply

    replica.reply = other
    assert await asked.get_many(["a"]) == [None]
    assert recorder.total(metrics.CACHE_LOOKUPS, result="error") == 1


@pytest.mark.parametrize("reply", [b"{}", None], ids=["unreadable", "unavailable"])
async def test_a_replica_whose_replies_are_of_no_use_is_hung_up_on(reply: bytes | None):
    """There may be another, and the connection is to this one."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder)
    await connected(asked)

    async def no_use(_request: bytes) -> bytes:
        if reply is None:
            raise Unavailable("the prediction store does not answer")
        return reply

    replica.reply = no_use
    assert await asked.get_many(["a"]) == [None]
    assert await asked.get_many(["a"]) == [prediction("a")]
    assert replica.by_handle == 1


async def test_a_handle_call_of_another_length_is_a_miss():
    """Whatever answers so."""
    replica, recorder = CacheReplica(), CountingMetrics()
    asked = lookups(replica, recorder)

    async def fewer(_keys: Sequence[str]) -> list[Prediction | None]:
        return []

    replica.get_many = fewer
    assert await asked.get_many(["a"]) == [None]


async def test_a_cache_whose_store_is_away_is_left_alone():
    """After some failures in a row nobody waits for it until it is back."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder)
    await connected(asked)
    replica.error = Unavailable("the prediction store does not answer")

    for _ in range(MAX_FAILURES):
        assert await asked.get_many(["a"]) == [None]
    assert replica.asked == MAX_FAILURES
    assert await asked.get_many(["a"]) == [None]
    assert replica.asked == MAX_FAILURES
    replica.error = None
    await until(lambda: not asked._breaker.is_open)
    assert await asked.get_many(["a"]) == [prediction("a")]


async def test_a_cache_that_hangs_is_left_alone_also_when_callers_leave_before_it_has_failed():
    """Who gives up within `lookup_timeout_ms` would wait for it each time."""
    replica, recorder = CacheReplica(), CountingMetrics()
    await replica.listen()
    asked = lookups(replica, recorder, lookup_timeout_ms=100)
    await connected(asked)
    replica.reply = replica.get_many = hang
    replica.error = Unavailable("hangs")
    async with asyncio.timeout(5):
        while not asked._breaker.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asked.get_many(["a"])
    assert await asked.get_many(["a"]) == [None]
