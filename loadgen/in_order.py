"""Texts sent in a given order by a number of callers, each the next one when it is answered; how long all of it took.

Every answer is computed, none looked up or kept (`Cache-Control: no-store`), so that the same texts can be sent again.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

import aiohttp

from loadgen.load import LoadError
from loadgen.targets import reason

PATH = "/api/v1/intents/classify"
TIMEOUT_S = 60.0
OK = 200


def send_in_order(url: str, texts: Sequence[str], callers: int) -> float:
    """Send every text once; seconds from the first call to the last answer.

    Raises:
        LoadError: a text was not answered.
    """
    return asyncio.run(_send(f"{url}{PATH}", texts, callers))


async def _send(url: str, texts: Sequence[str], callers: int) -> float:
    remaining = iter(texts)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"Cache-Control": "no-store"},
    ) as session:
        started_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(callers):
                    group.create_task(_call(session, url, remaining))
        except* (aiohttp.ClientError, TimeoutError, LoadError) as failures:
            raise LoadError(f"{url}: {reason(failures.exceptions[0])}") from None
        return time.monotonic() - started_s


async def _call(session: aiohttp.ClientSession, url: str, remaining: Iterator[str]) -> None:
    for text in remaining:
        async with session.post(url, json={"text": text}) as response:
            body = await response.read()
            if response.status != OK:
                raise LoadError(f"{response.status} {body[:200].decode(errors='replace')}")
