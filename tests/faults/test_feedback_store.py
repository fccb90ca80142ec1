"""A feedback store that takes nothing more, while the service answers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import aiohttp
import psutil
import pytest
from redis import Redis

from tests.service import API, RECORD, Answer, Service, Traffic, new_text, wait_for

LOG = "{ig:log}"
CALLERS = 5000
"""More than HAProxy has connections for, which are 4,096."""
ANSWER_S = 8
"""Thousands are refused meanwhile, which takes a slow machine some seconds."""
RECOVER_S = 10
"""The supervisor waits up to 5 s before it starts a store again that does not stay up."""


def submit(service: Service, text: str) -> Answer:
    """A correction, by the same key each time."""
    return service.feedback({"text": text}, Idempotency_Key=text[:255])


def long_texts(count: int) -> list[str]:
    return [f"{new_text()} {'x' * 4000}" for _ in range(count)]


def operator(service: Service) -> Redis:
    return Redis.from_url(service.state["stores"]["feedback"], socket_timeout=5)


@contextmanager
def disk_full(service: Service) -> Iterator[None]:
    """No file of the store, nor of one started instead of it, grows beyond what its data have now, nearly.

    A write is cut there, as on a disk that is full, and no disk has to be filled; whatever else is limited writes less.
    """
    store = service.store("feedback")
    assert store
    grown = max(file.stat().st_size for file in (service.folder / "data").rglob("*.incr.aof"))
    limited = [store, psutil.Process(service.state["supervisor"]["pid"])]
    before = [process.rlimit(psutil.RLIMIT_FSIZE) for process in limited]
    for process, (_, hard) in zip(limited, before, strict=True):
        process.rlimit(psutil.RLIMIT_FSIZE, (grown + 100, hard))
    try:
        yield
    finally:
        limited[1].rlimit(psutil.RLIMIT_FSIZE, before[1])
        with suppress(psutil.NoSuchProcess):  # the next one has no limit
            if store := service.store("feedback"):
                store.rlimit(psutil.RLIMIT_FSIZE, before[0])


@contextmanager
def memory_full(service: Service) -> Iterator[None]:
    with closing(operator(service)) as client:
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", before)


@contextmanager
def read_only(service: Service) -> Iterator[None]:
    """A replica of a primary that never answers, with the data it had."""
    with closing(operator(service)) as client:
        client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


def corrected(service: Service, text: str, url: str) -> bool:
    return service.classify(text, url=url).headers["X-Cache"] == "correction"


def entries(service: Service) -> set[str]:
    """The ids of the records in the log."""
    with closing(operator(service)) as client:
        return {entry_id.decode() for entry_id, fields in client.xrange(LOG) if fields[b"kind"] == b"feedback"}


@pytest.mark.parametrize("fault", [disk_full, memory_full, read_only])
def test_feedback_is_refused_meanwhile_none_is_lost_and_answers_go_on(
    service: Service, fault: Callable[[Service], Iterator[None]]
):
    """Corrections are served all along; what was refused is taken once, under its own key, when the fault is over."""
    texts, refused_texts = long_texts(25), long_texts(8)
    before = [submit(service, text) for text in texts]
    total = service.stats()["total"]
    for url in service.replica_urls():
        wait_for(lambda url=url: corrected(service, texts[-1], url), 5, lambda: "the correction never showed")

    with Traffic(service, pause_s=0.05) as traffic:
        with fault(service):
            refused = [submit(service, text) for text in refused_texts]
            served = [corrected(service, texts[-1], url) for url in service.replica_urls()]
        wait_for(lambda: submit(service, refused_texts[0]).status == 201, RECOVER_S, lambda: "feedback never recovered")
        again = [submit(service, text) for text in refused_texts]

    assert {(each.status, each.json()["type"], each.headers["Retry-After"]) for each in refused} == {
        (503, "unavailable", "1")
    }
    assert [each.status for each in again] == [200] + [201] * 7
    assert (served, set(traffic.outcomes)) == ([True, True], {200})
    assert {each.json()["feedback_id"] for each in (*before, *again)} <= (found := entries(service))
    assert service.stats()["total"] == len(found) == total + len(refused_texts)


def test_a_log_that_hangs_keeps_no_connection_from_other_calls(service: Service):
    """A few wait for it, the others hear at once that it is too much; what is acknowledged in the end is in the log."""

    async def submit_one(session: aiohttp.ClientSession) -> tuple[int, str]:
        async with session.post(f"{service.url}{API}/feedback", json=RECORD | {"text": new_text()}) as response:
            return response.status, (await response.json()).get("feedback_id", "")

    async def flood() -> tuple[list[tuple[int, str]], list[Answer]]:
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)  # whoever has an answer leaves
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            with service.frozen("feedback"):
                calls = [asyncio.create_task(submit_one(session)) for _ in range(CALLERS)]
                _, waiting = await asyncio.wait(calls, timeout=4)
                assert waiting
                async with asyncio.timeout(ANSWER_S):
                    answers = await asyncio.gather(*(asyncio.to_thread(service.classify, new_text()) for _ in range(5)))
                assert any(not each.done() for each in waiting)
            return await asyncio.gather(*calls), answers

    outcomes, answers = asyncio.run(flood())

    statuses = Counter(status for status, _ in outcomes)
    assert [each.status for each in answers] == [200] * 5
    assert set(statuses) <= {201, 429, 503}, statuses
    assert statuses[429] > CALLERS / 4, statuses
    assert {feedback_id for status, feedback_id in outcomes if status == 201} <= entries(service)
