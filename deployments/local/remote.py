"""Asking a running service over HTTP, for `intents classify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = "/api/v1/intents/classify/batch"
MOST_TEXTS = 100
TIMEOUT_S = 60.0


async def classify(address: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The classification of each text, in order, as the contract's JSON has it.

    Raises:
        StartupError: nothing answers at the address, or it answers with an error; one line.
    """
    url = address.rstrip("/") + PATH
    answers: list[dict[str, Any]] = []
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            for start in range(0, len(texts), MOST_TEXTS):
                answers += await _batch(session, url, texts[start : start + MOST_TEXTS])
    except aiohttp.InvalidURL:
        raise StartupError(f"{address} is not an address; --url takes one such as http://127.0.0.1:8000") from None
    except TimeoutError:
        raise StartupError(f"{address} did not answer within {TIMEOUT_S:.0f} s; see `intents status`") from None
    except aiohttp.ClientError:
        raise StartupError(
            f"nothing answers at {address}; start the service with `intents up`, or name it with --url"
        ) from None
    return answers


async def _batch(session: aiohttp.ClientSession, url: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    async with session.post(url, json={"texts": list(texts)}) as response:
        if response.ok:
            results: list[dict[str, Any]] = (await response.json())["results"]
            return results
        raise StartupError(f"{url} answers {response.status}: {await _detail(response)}")


async def _detail(response: aiohttp.ClientResponse) -> str:
    """What a problem+json document says, each place of a validation error with it; else the start of the body."""
    try:
        problem = await response.json(content_type=None)
        places = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problem.get("errors", ())]
        return "; ".join([str(problem.get("detail") or problem.get("title")), *places])
    except (ValueError, AttributeError, KeyError, TypeError):
        return (await response.text())[:200]
