"""What a good engineer would write instead of this service: one process, FastAPI on uvicorn, redis.asyncio, an encoder.

A hit gives the stored bytes as they are. There is no batching, no correction, no metrics, no log line a request and no
second process; with `--lru` an in-process LRU stands in front of Redis. uvloop, httptools and hiredis are on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from .keys import key_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PATH = "/api/v1/intents/classify"
TTL_S = 3600
MAX_CHARACTERS = 5000
CONNECTIONS = 64


class Store(Protocol):
    """The part of a Redis client that is used."""

    def get(self, key: str, /) -> Awaitable[Any]:
        """The value of a key in bytes, or None."""

    def set(self, key: str, value: bytes, /, *, ex: int) -> Awaitable[Any]:
        """Keep a value for `ex` seconds."""


class Lru:
    """The last `size` answers used; a size of 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """The value of a key, which becomes the most recent one."""
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; the one not used for longest leaves."""
        if not self._size:
            return
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


class Question(BaseModel):
    """The body of a request; other fields are ignored."""

    text: str = Field(min_length=1, max_length=MAX_CHARACTERS)


def build_app(store: Store, classify: Callable[[Sequence[str]], Sequence[object]], *, lru_size: int = 0) -> FastAPI:
    """The application: `classify` answers the texts that neither the LRU nor the store knows, one at a time."""
    app = FastAPI(openapi_url=None)
    local = Lru(lru_size)
    model_thread = ThreadPoolExecutor(1)

    async def computed(text: str) -> bytes:
        answers = await asyncio.get_running_loop().run_in_executor(model_thread, classify, [text])
        return json.dumps(answers[0], ensure_ascii=False, separators=(",", ":")).encode()

    @app.post(PATH)
    async def answer(question: Question) -> Response:
        key = key_of(question.text)
        body = local.get(key)
        if body is not None:
            return _response(body, "hit-local")
        body = await store.get(key)
        state = "miss" if body is None else "hit-redis"
        if body is None:
            body = await computed(question.text)
            await store.set(key, body, ex=TTL_S)
        local.put(key, body)
        return _response(body, state)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _response(body: bytes, state: str) -> Response:
    return Response(body, media_type="application/json", headers={"X-Cache": state})


def main() -> None:
    """Serve until ended."""
    import uvicorn
    from redis.asyncio import BlockingConnectionPool, Redis

    from .encoder import Encoder

    options = _options()
    pool = BlockingConnectionPool.from_url(options.redis_url, max_connections=CONNECTIONS)
    app = build_app(Redis(connection_pool=pool), Encoder(options.threads), lru_size=options.lru)
    uvicorn.run(
        app, host="127.0.0.1", port=options.port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lru", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
