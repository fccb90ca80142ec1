"""Following purges: the local tier is open exactly while it hears of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deployments.core.local_tier import Kept, LocalTier
from deployments.core.metrics import NoMetrics
from deployments.core.purges import PURGED, PURGING_ON, PurgeFollower


class Channel:
    """A channel whose next message, or error, the test gives; each subscription sets `subscribed`."""

    def __init__(self) -> None:
        self.subscribed = asyncio.Event()
        self._messages: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def say(self, message: bytes | Exception) -> None:
        self._messages.put_nowait(message)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[bytes]]:
        self.subscribed.set()
        yield self._heard()

    async def _heard(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._messages.get()
            if isinstance(message, Exception):
                raise message
            yield message


@pytest.fixture
def tier() -> LocalTier:
    return LocalTier(max_bytes=10_000, ttl_s=30, correction=lambda _key: None, recorder=NoMetrics())


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def forgotten() -> list[str]:
    """Grows each time that what waits to be written is to be let go of."""
    return []


@pytest.fixture
async def follower(channel: Channel, tier: LocalTier, forgotten: list[str]) -> AsyncIterator[PurgeFollower]:
    follower = PurgeFollower(channel.subscribe, tier, lambda: forgotten.append("unwritten"), jitter=lambda: 0.0)
    follower.start()
    await turns()
    yield follower
    await follower.close()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def keep(tier: LocalTier) -> None:
    tier.put("a", Kept(b"{}", "key", None), scores=False, generation=tier.generation)


async def test_a_purge_empties_the_tier_and_leaves_it_open(
    follower: PurgeFollower, channel: Channel, tier: LocalTier, forgotten: list[str]
):
    """Until then it keeps what it is given, and goes on doing so; what waits to be written goes, as at the start."""
    keep(tier)
    before = len(tier), len(forgotten)
    channel.say(PURGED)
    await turns()

    assert (before, len(tier), tier.is_open) == ((1, 1), 0, True)
    assert forgotten == ["unwritten"] * 2


async def test_a_purge_that_goes_on_drops_what_waits_to_be_written_once(
    follower: PurgeFollower, channel: Channel, tier: LocalTier, forgotten: list[str]
):
    """It may take seconds; the tier is emptied each time."""
    channel.say(PURGED)
    channel.say(PURGING_ON)
    await turns()
    keep(tier)
    channel.say(PURGING_ON)
    await turns()

    assert (len(tier), forgotten) == (0, ["unwritten"] * 2)


async def test_losing_the_subscription_closes_the_tier_until_there_is_another(
    follower: PurgeFollower, channel: Channel, tier: LocalTier
):
    """Never served blind, and nobody has to restart anything."""
    keep(tier)
    channel.say(ConnectionError("gone"))
    await turns()
    lost = (len(tier), tier.is_open)
    channel.subscribed.clear()
    async with asyncio.timeout(5):
        await channel.subscribed.wait()
    await turns()

    assert lost == (0, False)
    assert tier.is_open


async def test_the_log_names_the_error_and_not_its_words(
    follower: PurgeFollower, channel: Channel, caplog: pytest.LogCaptureFixture
):
    """A client's message may carry the URL, and the URL a password."""
    channel.say(ConnectionError("redis://:secret@host is gone"))
    await turns()

    assert "ConnectionError" in caplog.text
    assert "secret" not in caplog.text


async def test_after_its_end_the_tier_is_closed(channel: Channel, tier: LocalTier):
    """Nobody listens any more."""
    follower = PurgeFollower(channel.subscribe, tier, lambda: None)
    follower.start()
    await turns()
    was_open = tier.is_open
    await follower.close()

    assert (was_open, tier.is_open) == (True, False)
