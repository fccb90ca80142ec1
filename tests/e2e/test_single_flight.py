"""A thousand callers of one new text: a model call at each ingress replica, and no harm in another's leaving."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import psutil
import pytest

from deployments.core.metrics import JOINED, QUEUE_WAIT
from tests.e2e.test_metrics import Samples, count, settled
from tests.service import API, Answer, Service, new_text, wait_for

CALLERS = 1000
ALL_JOINED_TIMEOUT_S = 20
"""Replicas report their counts every few seconds."""
POLL_S = 0.25
"""Asking for the counts takes from those who are to count."""
COMPUTED = f"{QUEUE_WAIT.name}_count"

Ask = Callable[[str, str], Awaitable[Answer]]


@asynccontextmanager
async def callers() -> AsyncIterator[Ask]:
    """Ask for a text at an address; each call has a connection, however many there are."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(url: str, text: str) -> Answer:
            async with session.post(f"{url}{API}/classify", json={"text": text}) as response:
                return Answer(response.status, response.headers, await response.read())

        yield ask


def asked_of_all(ask: Ask, service: Service, text: str) -> list[asyncio.Task[Answer]]:
    """So many callers, by turns at each ingress replica."""
    urls = service.replica_urls()
    assert len(urls) == 2
    return [asyncio.create_task(ask(urls[caller % 2], text)) for caller in range(CALLERS)]


@contextmanager
def frozen(service: Service) -> Iterator[None]:
    """No model replica does anything meanwhile."""
    models = [psutil.Process(pid) for pid in service.replica_pids("Model")]
    for model in models:
        model.suspend()
    try:
        yield
    finally:
        for model in models:
            model.resume()


class Counts:
    """What the service counts; once settled after one test they are what the next begins with."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: Samples = settled(service)

    async def wait_until_all_joined(self) -> None:
        """All but the one at each replica who began the call."""
        wanted = count(self._before, JOINED.name) + CALLERS - 2
        await asyncio.to_thread(
            wait_for,
            lambda: self._service.metric(JOINED.name) == wanted,
            ALL_JOINED_TIMEOUT_S,
            lambda: f"{wanted - self._service.metric(JOINED.name)} did not join",
            pause_s=POLL_S,
        )

    def newly_computed(self) -> float:
        """Texts that the model has seen since: each waited once, however many shared a forward pass."""
        before, self._before = self._before, settled(self._service)
        return count(self._before, COMPUTED) - count(before, COMPUTED)


@pytest.fixture(scope="module")
def counts(service: Service) -> Counts:
    return Counts(service)


async def test_a_thousand_callers_of_one_text_make_one_model_call_at_each_replica(service: Service, counts: Counts):
    """All of them get its answer."""
    async with callers() as ask:
        with frozen(service):
            tasks = asked_of_all(ask, service, new_text())
            await counts.wait_until_all_joined()
        answers = await asyncio.gather(*tasks)

    assert {(answer.status, answer.headers["X-Cache"]) for answer in answers} == {(200, "miss")}
    assert len({answer.body for answer in answers}) == 1
    assert counts.newly_computed() == 2


async def test_half_of_the_callers_leaving_fails_none_of_the_rest(service: Service, counts: Counts):
    """Those whose request began the call are among them; it goes on, and is the only one at each replica."""
    async with callers() as ask:
        with frozen(service):
            tasks = asked_of_all(ask, service, new_text())
            await counts.wait_until_all_joined()
            leaving, staying = tasks[: CALLERS // 2], tasks[CALLERS // 2 :]
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
        answers = await asyncio.gather(*staying)

    assert {(answer.status, answer.headers["X-Cache"]) for answer in answers} == {(200, "miss")}
    assert len({answer.body for answer in answers}) == 1
    assert counts.newly_computed() == 2
