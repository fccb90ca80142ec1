"""Requests to the model by an ingress replica: alone over a connection, and by handle whenever that brings nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from deployments import model_calls
from deployments.core import metrics
from deployments.core.errors import DeadlineExceeded, Overloaded, Unavailable
from deployments.core.outcomes import Outcome, outcomes_to_json, request_from_json
from deployments.core.rpc import Address, RpcServer
from deployments.core.settings import Settings
from deployments.model_calls import ModelCalls
from tests.unit.fakes import CountingMetrics, prediction
from tests.unit.test_corrections import until
from tests.unit.test_lookups import hang, naming


class ModelReplica:
    """Answers each text with itself as intent; refuses `full`. Over its port if it has one, and by handle."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self.reply: Callable[[bytes], Awaitable[bytes]] = self._reply
        self.asked: list[tuple[Sequence[str], float]] = []
        self.by_handle = 0
        self.error: Exception | None = None

    async def listen(self) -> None:
        self.address = await RpcServer(self._answer).start("127.0.0.1")

    async def _answer(self, request: bytes) -> bytes:
        return await self.reply(request)

    async def _reply(self, request: bytes) -> bytes:
        return outcomes_to_json(self.outcomes(*request_from_json(request)))

    def outcomes(self, texts: Sequence[str], left_s: float) -> list[Outcome]:
        self.asked.append((texts, left_s))
        return [Overloaded("full", retry_after_s=2.5) if text == "full" else prediction(text) for text in texts]

    @property
    def handle(self) -> Any:
        """What Serve would give for it."""

        async def predict(requests: Sequence[tuple[Sequence[str], float]]) -> list[list[Outcome]]:
            self.by_handle += 1
            if self.error:
                raise self.error
            return [self.outcomes(*request) for request in requests]

        return SimpleNamespace(predict=SimpleNamespace(remote=predict), broadcast=naming(lambda: self.address))


async def asking(replica: ModelReplica, recorder: metrics.Metrics | None = None) -> ModelCalls:
    """Calls to a replica that is connected to, if it has a port."""
    calls = ModelCalls(Settings(), replica.handle, recorder or CountingMetrics())
    if replica.address:
        await until(lambda: calls._channel._connections)
    return calls


async def test_requests_go_over_the_connection_when_there_is_one():
    """Each with its texts and its time; by handle before, with the same outcomes."""
    replica, recorder = ModelReplica(), CountingMetrics()
    calls = await asking(replica, recorder)

    before = await calls.predict(["a", "full"], 10)
    await replica.listen()
    await until(lambda: calls._channel._connections)
    after, _ = await asyncio.gather(calls.predict(["a", "full"], 10), calls.predict(["b"], 20))

    assert before[0] == after[0] == prediction("a")
    assert [(type(each[1]), each[1].detail, each[1].retry_after_s) for each in (before, after)] == [
        (Overloaded, "full", 2.5)
    ] * 2
    assert replica.by_handle == 1
    assert [texts for texts, _ in replica.asked] == [["a", "full"], ["a", "full"], ["b"]]
    assert [round(left_s) for _, left_s in replica.asked] == [10, 10, 20]
    assert recorder.total(metrics.MODEL_CALLS, transport="handle") == 1
    assert recorder.total(metrics.MODEL_CALLS, transport="direct") == 2


async def test_a_request_whose_connection_breaks_off_goes_by_handle():
    """A replica that is killed fails no caller."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)

    async def end(_request: bytes) -> bytes:
        for connection in calls._channel._connections.values():
            connection.close()
        replica.address = None
        return await asyncio.Event().wait()

    replica.reply = end
    assert await calls.predict(["a"], 10) == [prediction("a")]
    assert replica.by_handle == 1


@pytest.mark.parametrize("reply", [b"[]", b"{}", b"\x80", None], ids=["few", "foreign", "binary", "failed"])
async def test_a_reply_of_no_use_is_asked_for_by_handle(reply: bytes | None):
    """A defect, or a number that JSON cannot carry; what else is under way on the connection stays so."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)

    may_go = asyncio.Event()

    async def other(request: bytes) -> bytes:
        if b"neighbour" in request:
            await may_go.wait()
            return await replica._reply(request)
        if reply is None:
            raise ZeroDivisionError
        return reply

    replica.reply = other
    neighbour = asyncio.create_task(calls.predict(["neighbour"], 10))
    assert await calls.predict(["a"], 10) == [prediction("a")]
    assert replica.by_handle == 1
    may_go.set()
    assert await neighbour == [prediction("neighbour")]
    assert replica.by_handle == 1


async def test_a_request_that_gets_no_reply_ends_with_its_time_and_takes_nobody_along():
    """Others wait on the same connection, and may have more time."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)
    may_go, called_off = asyncio.Event(), asyncio.Event()

    async def slow(request: bytes) -> bytes:
        try:
            await may_go.wait()
        except asyncio.CancelledError:
            called_off.set()
            raise
        return await replica._reply(request)

    replica.reply = slow
    patient = asyncio.create_task(calls.predict(["a"], 10))
    with pytest.raises(Unavailable, match=r"did not answer within 0\.0"):
        await calls.predict(["b"], 0.05)
    await asyncio.wait_for(called_off.wait(), 5)
    may_go.set()

    assert await patient == [prediction("a")]
    assert replica.by_handle == 0
    assert [texts for texts, _ in replica.asked] == [["a"]]


async def test_a_request_that_was_sent_is_sent_once_more_and_not_twice():
    """Its text may be what ends the replicas; one that was not sent has two attempts by handle."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)
    replica.error = RayActorError()

    async def end(_request: bytes) -> bytes:
        for connection in calls._channel._connections.values():
            connection.close()
        return await asyncio.Event().wait()

    replica.reply, replica.address = end, None
    with pytest.raises(Unavailable):
        await calls.predict(["a"], 10)
    assert replica.by_handle == 1
    with pytest.raises(Unavailable):
        await calls.predict(["b"], 10)
    assert replica.by_handle == 3


async def test_what_a_request_weighs_goes_with_its_length():
    """As its forward pass does."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)
    replica.reply = hang
    (connection,) = calls._channel._connections.values()
    loads = []
    for text in ("word", "word " * 100):
        before = connection.load
        asked = asyncio.create_task(calls.predict([text], 10))
        await until(lambda before=before: connection.load > before)
        loads.append(connection.load - before)
        asked.cancel()

    assert loads[1] > 5 * loads[0]


async def test_whose_time_ends_hears_it_from_the_model(monkeypatch: pytest.MonkeyPatch):
    """Who hangs up would count as a caller who left."""
    replica = ModelReplica()
    await replica.listen()
    calls = await asking(replica)

    async def until_the_end(request: bytes) -> bytes:
        texts, left_s = request_from_json(request)
        await asyncio.sleep(left_s)
        return outcomes_to_json([DeadlineExceeded("late")] * len(texts))

    replica.reply = until_the_end
    monkeypatch.setattr(model_calls, "REPLY_TIME_S", 10.0)
    (outcome,) = await calls.predict(["a"], 3)  # the reply has a tenth of it
    assert isinstance(outcome, DeadlineExceeded)


async def test_a_request_whose_replica_is_gone_goes_to_the_next_one_directly():
    """Once: its text may be what ends them."""
    replicas = [ModelReplica() for _ in range(3)]
    for each in replicas:
        await each.listen()
    addresses = [each.address for each in replicas]
    handle = replicas[0].handle
    handle.broadcast = naming(*(lambda n=n: addresses[n] for n in range(3)))
    calls = ModelCalls(Settings(), handle, CountingMetrics())
    await until(lambda: len(calls._channel._connections) == 3)
    gone: list[int] = []
    most = 1

    def ends(number: int) -> Callable[[bytes], Awaitable[bytes]]:
        async def reply(request: bytes) -> bytes:
            if len(gone) == most:
                return await replicas[number]._reply(request)
            gone.append(number)
            calls._channel._connections[addresses[number]].close()
            addresses[number] = None
            return await asyncio.Event().wait()

        return reply

    for number, each in enumerate(replicas):
        each.reply = ends(number)
    assert await calls.predict(["a"], 10) == [prediction("a")]
    assert len(gone) == 1
    most = 3
    with pytest.raises(Unavailable, match="two replicas"):
        await calls.predict(["b"], 10)
    assert len(gone) == 3
    assert replicas[0].by_handle == 0
