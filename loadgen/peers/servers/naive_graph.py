"""The same graph as one would first write it on Ray Serve: an ingress, a cache deployment with Redis, a batched model.

Every look-up is one handle call, there is no local tier, `@serve.batch` and every Serve option are left at their
defaults, and Serve runs as it comes: its own Python proxy, its access log, no variables set. One default decides over
all others: a replica takes 5 calls at once, and callers beyond that wait for up to half a second before they ask again.
`--max-ongoing` raises it on all three deployments, which is the first thing one would find. The graph runs on a Ray of
its own, which ends with it.
"""

# No postponed annotations: FastAPI reads those of the class inside `serve.ingress`.
import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import ray
from fastapi import FastAPI, Response
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle
from redis.asyncio import Redis

from .encoder import Answer, Encoder
from .keys import key_of

PATH = "/api/v1/intents/classify"
TTL_S = 3600
REPLICA_CPUS = 4
"""Each deployment asks for a CPU by default; on a smaller machine the graph would wait for them for ever."""

app = FastAPI()


class Question(BaseModel):
    """The body of a request."""

    text: str


@serve.deployment
class Cache:
    """Answers by text, in Redis."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)

    async def get(self, text: str) -> Answer | None:
        """The answer kept for a text."""
        kept = await self._redis.get(key_of(text))
        return None if kept is None else json.loads(kept)

    async def put(self, text: str, answer: Answer) -> None:
        """Keep an answer."""
        await self._redis.set(key_of(text), json.dumps(answer), ex=TTL_S)


@serve.deployment
class Model:
    """The encoder, its batches formed by Serve."""

    def __init__(self, threads: int) -> None:
        self._encoder = Encoder(threads)

    @serve.batch  # type: ignore[untyped-decorator]
    async def classify(self, texts: Sequence[str]) -> list[Answer]:
        """Answer a batch, in order."""
        return self._encoder(texts)


@serve.deployment
@serve.ingress(app)
class Ingress:
    """HTTP in front of both."""

    def __init__(self, cache: DeploymentHandle, model: DeploymentHandle) -> None:
        self._cache = cache
        self._model = model

    @app.post(PATH)
    async def classify(self, question: Question, response: Response) -> dict[str, Any]:
        """Answer from the cache, else from the model."""
        answer: Answer | None = await self._cache.get.remote(question.text)
        response.headers["X-Cache"] = "miss" if answer is None else "hit-redis"
        if answer is None:
            answer = await self._model.classify.remote(question.text)
            await self._cache.put.remote(question.text, answer)
        return answer


def main() -> None:
    """Serve until ended."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(
        address="local",
        num_cpus=REPLICA_CPUS,
        include_dashboard=False,
        _temp_dir=options.temp_dir,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"port": options.port})
    serve.run(_graph(options))
    signal.pause()


def _graph(options: argparse.Namespace) -> serve.Application:
    raised = {"max_ongoing_requests": options.max_ongoing} if options.max_ongoing else {}
    deployments: list[Any] = [Ingress, Cache, Model]  # what `serve.deployment` has made of the classes
    ingress, cache, model = (each.options(**raised) for each in deployments)
    return ingress.bind(cache.bind(options.redis_url), model.bind(options.threads))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--temp-dir", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-ongoing", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
