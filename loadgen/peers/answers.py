"""The answers of this service, recorded, and held against those of the peers that give the same."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence

import aiohttp

from loadgen.load import LoadError

CALLERS = 4
"""Serve's default lets five calls into a replica at once; more callers would only wait for each other."""
TIMEOUT_S = 60.0


def record(url: str, texts: Sequence[str]) -> dict[str, bytes]:
    """Ask for each text once; gives the bodies. Whoever keeps answers has kept these afterwards.

    Raises:
        LoadError: a text was not answered.
    """
    return asyncio.run(_record(url, texts))


def compare(given: Mapping[str, bytes], recorded: Mapping[str, bytes], *, byte_for_byte: bool) -> None:
    """Hold the answers given to the recorded texts against those recorded.

    Raises:
        LoadError: an answer is another one, in its bytes or, when those may differ, in its values.
    """
    same = bytes.__eq__ if byte_for_byte else _same_values
    for text, answer in recorded.items():
        if not same(given[text], answer):
            raise LoadError(
                f"the answer to {text!r} is {given[text]!r} and not {answer!r}, as recorded;"
                " its figures would be of other work"
            )


def _same_values(given: bytes, answer: bytes) -> bool:
    return bool(json.loads(given) == json.loads(answer))


async def _record(url: str, texts: Sequence[str]) -> dict[str, bytes]:
    answers: dict[str, bytes] = {}

    async def ask(session: aiohttp.ClientSession, remaining: Iterator[str]) -> None:
        for text in remaining:
            async with session.post(url, json={"text": text}) as response:
                body = await response.read()
                if response.status != 200:  # noqa: PLR2004 — HTTP's OK
                    raise LoadError(f"{url} answers {response.status} to {text!r}: {body[:200]!r}")
                answers[text] = body

    remaining = iter(texts)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            await asyncio.gather(*(ask(session, remaining) for _ in range(CALLERS)))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LoadError(f"{url} does not answer: {error or type(error).__name__}") from error
    return answers
