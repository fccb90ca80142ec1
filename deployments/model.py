"""The model deployment: tokeniser, encoder and heads behind a dynamic batcher."""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import ray

from deployments.autoscaling import BUSY_SHARE, QUEUE_DELAY_MS
from deployments.core import metrics
from deployments.core.artifact import Artifact
from deployments.core.batching import Batcher
from deployments.core.classifier import Classifier, PassCost, Tokens
from deployments.core.outcomes import Outcome, outcomes_to_json, request_from_json
from deployments.core.rpc import Address, RpcServer
from deployments.core.runtimes import Place
from deployments.core.schedule import Limits
from deployments.core.settings import Settings
from deployments.logs import configure_logging
from deployments.runtime import RayMetrics, listen

if TYPE_CHECKING:
    from deployments.core.prediction import Prediction

logger = logging.getLogger(__name__)

SUSPECT_BATCHES = 3
"""Batches in a row without a single answer after which the model is tried with a text known to be fine."""
ENDLESS_REQUESTS = 2
"""A batch that runs for so many times what a request may take will not end; nobody waits for it any more."""


class Model:
    """Serve shell around `Classifier` and `Batcher`. Ready only after a first forward pass.

    Requests come over a port of the replica's own, see `core.rpc`, and by handle where there is none.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        configure_logging(settings.log_level)
        artifact = Artifact.load(settings.artifact_folder)
        # Threads of their own: in throughput mode user code shares the loop that answers health checks.
        tokeniser, worker = ThreadPoolExecutor(1, "tokeniser"), ThreadPoolExecutor(1, "forward")
        self._worker = worker
        self._endless_s = ENDLESS_REQUESTS * settings.request_timeout_s
        loop = asyncio.get_running_loop()
        self._classifier, cost = await loop.run_in_executor(worker, _load, artifact, settings, _threads())
        recorder = RayMetrics()
        runtime = self._classifier.runtime.name
        recorder.record(metrics.MODEL_INFO, 1, model_version=artifact.version, runtime=runtime)
        self._batcher: Batcher[str, Tokens, Prediction] = Batcher(
            prepare=self._classifier.tokenise,
            run=self._classifier.forward,
            tokens=lambda item: len(item.ids),
            prepare_executor=tokeniser,
            run_executor=worker,
            limits=Limits(
                max_batch_tokens=settings.max_batch_tokens,
                max_batch_size=settings.max_batch_size,
                max_queue_tokens=settings.max_queue_tokens,
                pass_overhead_tokens=cost.overhead_tokens,
                max_queue_s=settings.max_queue_ms / 1000,
                tokens_per_s=cost.tokens_per_s,
            ),
            metrics=recorder,
        )
        await self._listen()
        logger.info("model %s is ready on %s, %s", artifact.version, runtime, cost)

    async def _listen(self) -> None:
        server = RpcServer(self._answer)
        self._address = await listen(server)
        # Serve calls this when it stops a replica. Not a method: Python, which looks at the class, is not to call it.
        self.__del__ = server.drain

    async def predict(self, requests: Sequence[tuple[Sequence[str], float]]) -> list[list[Outcome]]:
        """The outcome for each text of each request, in order; one text's failure is its own.

        A request is its texts and the seconds left to it. Requests that travel together are served and refused as if
        each had come alone.
        """
        return await asyncio.gather(*(self._outcomes(texts, left_s) for texts, left_s in requests))

    async def address(self) -> Address | None:
        """Where this replica takes requests; None where it takes them by handle alone."""
        return self._address

    async def _answer(self, request: bytes) -> bytes:
        return outcomes_to_json(await self._outcomes(*request_from_json(request)))

    async def _outcomes(self, texts: Sequence[str], left_s: float) -> list[Outcome]:
        return await self._batcher.submit(texts, timeout_s=left_s)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler asks each replica for, once a metrics interval. See `autoscaling`."""
        return {
            QUEUE_DELAY_MS: 1000 * self._batcher.queue_delay_s,
            BUSY_SHARE: self._batcher.take_busy_share(),
        }

    async def check_health(self) -> None:
        """Asked by Serve every `health_check_period_s`; a replica that fails it three times in a row is replaced.

        A GPU that failed once fails for ever after in the same process. But texts at which a sound model raises are
        their callers' affair, so it is tried before it is blamed.

        Raises:
            RuntimeError: a batch does not end.
            Exception: what the forward pass raises at a text that it answered when the replica started.
        """
        if self._batcher.running_s > self._endless_s:
            raise RuntimeError(f"a batch has been running for {self._batcher.running_s:.0f} s")
        if self._batcher.failed_in_a_row >= SUSPECT_BATCHES:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._classifier.try_out)

    async def ping(self) -> bool:
        """A sign of life."""
        return True


def _load(artifact: Artifact, settings: Settings, threads: int) -> tuple[Classifier, PassCost]:
    place = _assigned_place() if settings.device == "auto" else settings.device
    classifier = Classifier.load(
        artifact, place=place, runtime=settings.runtime, precision=settings.precision, threads=threads
    )
    return classifier, classifier.warm_up()


def _assigned_place() -> Place:
    """CUDA with a share of a GPU from Serve, and only then: one that was not reserved is somebody else's."""
    return "cuda" if _assigned("GPU") else "cpu"


def _threads() -> int:
    """As many as the CPUs Serve gave this replica, rounded up."""
    return math.ceil(_assigned("CPU") or 1)


def _assigned(resource: str) -> float:
    assigned: float = ray.get_runtime_context().get_assigned_resources().get(resource, 0)
    return assigned
