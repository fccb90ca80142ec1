"""Asking a running service over HTTP, for the `intents` command: any number of texts, any failure one line."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from deployments.client import HttpClient
from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

MOST_TEXTS = 100
"""In one batch, as the contract has it; of a purge too, which takes more, since 100 of any length fit a body; and of a
warming, since 100 of any length are computed within a request's time."""
WARM_ATTEMPTS = 5
"""More than for a question: nobody waits for the answer, and each attempt goes on where the one before ended."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """How many texts were sent so far, and what became of them."""

    requested: int = 0
    already_cached: int = 0
    computed: int = 0

    def plus(self, answer: Mapping[str, int]) -> Warmed:
        """With the service's answer for some more."""
        return Warmed(
            self.requested + answer["requested"],
            self.already_cached + answer["already_cached"],
            self.computed + answer["computed"],
        )


async def classify(address: str, texts: Sequence[str], *, api_key: str | None = None) -> list[dict[str, Any]]:
    """The classification of each text, in order, as the contract's JSON has it.

    Raises:
        StartupError: nothing answers at the address, or it answers with an error; one line.
    """
    async with connected(address, api_key) as client:
        return [answer for batch in _batches(texts) for answer in await client.classify_batch(batch)]


async def purge(address: str, texts: Sequence[str], *, api_key: str | None = None) -> int:
    """Delete the kept predictions of `texts`; give how many there were. Raises as `classify` does."""
    async with connected(address, api_key) as client:
        return sum([await client.purge(batch) for batch in _batches(texts)])


async def purge_all(address: str, *, api_key: str | None = None) -> int:
    """Delete every kept prediction; give how many there were. Raises as `classify` does."""
    async with connected(address, api_key) as client:
        return await client.purge_all()


async def warm(
    address: str, texts: Sequence[str], told: Callable[[Warmed], None], *, api_key: str | None = None
) -> Warmed:
    """Have the predictions of `texts` kept, in their order; `told` hears how far it is.

    Raises as `classify` does, with the number of those done before.
    """
    done = Warmed()
    try:
        async with connected(address, api_key, attempts=WARM_ATTEMPTS) as client:
            for batch in _batches(texts):
                told(done)
                done = done.plus(await client.warm(batch))
    except StartupError as error:
        before = f"; {done.requested:,} of {len(texts):,} texts were done before" if done.requested else ""
        raise StartupError(f"{error}{before}") from None
    return done


@asynccontextmanager
async def connected(address: str, api_key: str | None, *, attempts: int = 3) -> AsyncIterator[HttpClient]:
    """A client of the service at an address, whose failures are `StartupError`s of one line."""
    try:
        asking = HttpClient(address, api_key=api_key, attempts=attempts)
    except ValueError as error:
        raise StartupError(str(error)) from None
    try:
        async with asking as client:
            yield client
    except aiohttp.InvalidURL:
        raise StartupError(f"{address} is not an address; --url takes one such as http://127.0.0.1:8000") from None
    except BrokenPipeError:  # of what is printed meanwhile, not of the service: the client wraps its own
        raise
    except ConnectionError:
        remedy = "start the service with `intents up`, or name it with --url"
        raise StartupError(f"nothing answers at {address}; {remedy}") from None
    except TimeoutError as error:
        if "deadline-exceeded" in str(error):
            raise StartupError(f"{address} answers {one_line(error)}") from None
        raise StartupError(f"{address} does not answer in time; see `intents status`") from None
    except (ValueError, RuntimeError) as error:
        raise StartupError(f"{address} answers {one_line(error)}") from None
    except (aiohttp.ClientError, KeyError):
        raise StartupError(f"{address} does not answer as this service does; name it with --url") from None


def one_line(error: Exception) -> str:
    """What an error says."""
    return " ".join(str(error).split())


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + MOST_TEXTS] for start in range(0, len(texts), MOST_TEXTS)]
