"""The local tier in a real ingress replica: what its process takes, told by the operating system.

`TEXTS` says how many texts it is asked for. 100,000 take some minutes:

    TEXTS=100000 python -m pytest tests/e2e/test_local_tier.py --timeout 1200 -s
"""

import json
import os
import uuid
from collections.abc import AsyncIterator

import aiohttp
import psutil
import pytest

from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from deployments.core.contract import MAX_BATCH, MAX_TEXT
from deployments.core.metrics import LOCAL_BYTES, NoMetrics
from deployments.core.prediction import Prediction
from deployments.core.prediction_cache import PredictionCache
from deployments.core.prediction_store import open_store
from deployments.core.settings import Settings
from deployments.core.text import prediction_key
from tests.e2e.test_metrics import count, settled
from tests.service import API, Service

TEXTS = int(os.environ.get("TEXTS", "10000"))
WARM_UP_TEXTS = 200
TRIES = 5
BOUND = Settings.model_fields["local_tier_bytes"].default
"""What the service runs with; at the texts' length, some 6,000 answers."""
SHIPPED = Artifact.load(DEFAULT_ARTIFACT)


def page() -> list[str]:
    """As many new texts as a batch takes, each as long as a text may be."""
    return [f"{uuid.uuid4()} ".ljust(MAX_TEXT, "?") for _ in range(MAX_BATCH)]


def predicted(text: str) -> Prediction:
    """What the model in service might say."""
    share = 1 / len(SHIPPED.intents)
    scores = {intent.name: share for intent in SHIPPED.intents}
    level = SHIPPED.complexity_levels[0]
    return Prediction(SHIPPED.intents[0].name, share, level, (), scores, len(text), True, SHIPPED.version)


class Asker:
    """Has texts' predictions in the store, then asks one replica for them: no model could answer so many."""

    def __init__(self, session: aiohttp.ClientSession, url: str, store_url: str) -> None:
        self._session = session
        self._url = url
        self._cache = PredictionCache(
            open_store(store_url, timeout_s=5), ttl_s=600, ttl_jitter=0, timeout_s=5, recorder=NoMetrics()
        )

    async def seed(self, texts: list[str]) -> None:
        keys = [prediction_key(text, SHIPPED.normalisation, SHIPPED.version) for text in texts]
        assert await self._cache.put_many(dict(zip(keys, map(predicted, texts), strict=True)))

    async def ask(self, texts: list[str]) -> set[str]:
        """Where their answers come from; nowhere, when a look-up was late and the model is too."""
        url, headers = f"{self._url}{API}/classify/batch", {"X-Request-Timeout-Seconds": "2"}
        async with self._session.post(url, json={"texts": texts}, headers=headers) as response:
            await response.read()
            return set(response.headers["X-Cache"].split(", ")) if response.status == 200 else set()

    async def ask_new(self, count: int) -> list[str]:
        """Ask for new texts, page by page; give the last page."""
        texts: list[str] = []
        for _ in range(count // MAX_BATCH):
            texts = page()
            await self.seed(texts)
            await self._ask_until_answered(texts)
        return texts

    async def _ask_until_answered(self, texts: list[str]) -> None:
        for _ in range(TRIES):
            if await self.ask(texts):
                return
        raise AssertionError(f"no answers in {TRIES} tries")


def replica(service: Service, url: str) -> psutil.Process:
    """The ingress replica that listens there."""
    port = int(url.rsplit(":", 1)[1])
    replicas = map(psutil.Process, service.replica_pids("Ingress"))
    return next(each for each in replicas if port in {its.laddr.port for its in each.net_connections("tcp4")})


@pytest.fixture
async def asker(service: Service) -> AsyncIterator[Asker]:
    async with aiohttp.ClientSession() as session:
        yield Asker(session, service.replica_urls()[0], service.state["stores"]["predictions"])


async def test_a_replica_stays_within_the_bound_however_many_texts_come(service: Service, asker: Asker):
    """From an empty tier on it grows by no more than a fifth above the bound, and the latest answers are at hand."""
    process = replica(service, service.replica_urls()[0])
    await asker.ask_new(WARM_UP_TEXTS)  # buffers, connections, the allocator's own
    assert service.purge({"all": True}).status == 200
    before = process.memory_info().rss
    last = await asker.ask_new(TEXTS)
    grown = process.memory_info().rss - before
    states = await asker.ask(last)
    told = count(settled(service), LOCAL_BYTES.name)
    print(
        json.dumps({"texts": TEXTS, "grown_mib": grown / 2**20, "told_mib": told / 2**20, "bound_mib": BOUND / 2**20})
    )

    assert 0.5 * BOUND < grown <= 1.2 * BOUND
    assert 0.9 * BOUND < told <= BOUND
    assert states == {"hit-local"}
