"""The rest of the graph as an ingress replica sees it: handles, called in groups and bounded in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from ray.serve.handle import DeploymentHandle

from deployments.core import metrics
from deployments.core.coalesce import Coalescer
from deployments.core.contract import HealthResponse
from deployments.core.corrections import Correction, Follower
from deployments.core.errors import IntentGraphError, Unavailable
from deployments.core.feedback_counts import LogStats, Tally
from deployments.core.feedback_log import Receipt, Submission, Verdict
from deployments.core.feedback_patterns import Contest
from deployments.core.feedback_reader import Page
from deployments.core.lanes import utf8_bytes
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction
from deployments.core.settings import Settings
from deployments.core.write_behind import WriteBehind
from deployments.lookups import Lookups
from deployments.model_calls import ModelCalls
from deployments.runtime import ask
from deployments.scrape import scrape_nodes

MAX_WAITING_GROUPS = 4
"""Groups of feedback records that may wait at a replica: a second of what a log writes at its best. A log that hangs
takes a group in `feedback_timeout_s`; who waits for it has a connection open, and HAProxy has 4,096 for all calls."""
MAX_UNKEPT = 10_000
"""Fresh predictions that may wait to be kept; beyond it they are dropped, and computed again when asked for."""
KEEP_PAUSE_S = 0.1
"""So long fresh predictions gather: nobody waits for them, and a call for each would cost 2 ms at both ends."""
KEEP_FAILED_PAUSE_S = 1.0
"""The same where the store refuses them: the calls would be for nothing, and what waits is answered from meanwhile."""
RECORD_OVERHEAD_BYTES = 2048
"""What a feedback record has beside its text, at most: labels, user, keys."""
PROBE_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)

R = TypeVar("R")


class HandleParts:
    """Implements `core.service.Parts`, `core.feedback.Log` and `http.app.Probes` with handles to other deployments."""

    def __init__(
        self,
        settings: Settings,
        follower: Follower,
        recorder: metrics.Metrics,
        *,
        cache: DeploymentHandle,
        model: DeploymentHandle,
        feedback: DeploymentHandle,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._metrics = recorder
        self._cache = cache
        self._model = model
        self._feedback = feedback
        self._lookups = Lookups(settings, cache, recorder)
        self._model_calls = ModelCalls(settings, model, recorder)
        self._writes: WriteBehind[str, Prediction] = WriteBehind(
            self._put_many,
            pause_s=KEEP_PAUSE_S,
            failed_pause_s=KEEP_FAILED_PAUSE_S,
            max_items=settings.cache_max_group,
            max_waiting=MAX_UNKEPT,
        )
        self._submissions: Coalescer[Submission, Receipt | IntentGraphError] = Coalescer(
            self._append_many,
            max_items=settings.feedback_max_group,
            max_waiting=MAX_WAITING_GROUPS * settings.feedback_max_group,
            size_bytes=lambda submission: RECORD_OVERHEAD_BYTES + utf8_bytes(str(submission.record["text"])),
        )

    async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
        """What the store has under each key; all misses when the cache is away."""
        return await self._lookups.get_many(keys)

    def unwritten(self, key: str) -> Prediction | None:
        """A kept prediction that is still on its way into the store."""
        return self._writes.get(key)

    def forget_unwritten(self) -> None:
        """Keep none of the predictions that wait to be written: what is purged is not to come after."""
        self._writes.clear()

    def keep(self, predictions: Mapping[str, Prediction]) -> None:
        """Have fresh predictions kept after the answer; dropped and counted when too many wait."""
        if not self._writes.put(predictions):
            self._metrics.record(metrics.CACHE_DROPPED, len(predictions))

    async def _put_many(self, predictions: dict[str, Prediction]) -> bool:
        try:
            return await ask(
                lambda: self._cache.put_many.remote(predictions), "cache", self._settings.request_timeout_s
            )
        except IntentGraphError as error:
            logger.warning("keeping %d predictions failed: %s", len(predictions), error.detail)
            self._metrics.record(metrics.CACHE_ERRORS, operation="put")
            return False

    async def keep_now(self, predictions: Mapping[str, Prediction]) -> None:
        """Keep predictions; when it returns, the store has them."""
        kept = await ask(lambda: self._cache.put_many.remote(predictions), "cache", self._settings.request_timeout_s)
        if not kept:
            raise Unavailable("the prediction store does not keep what is computed")

    async def purge(self, keys: Sequence[str]) -> int:
        """Delete the predictions under `keys`; give how many there were. One being written just now may come after."""
        self.forget_unwritten()
        return await ask(lambda: self._cache.purge.remote(keys), "cache", self._settings.request_timeout_s)

    async def purge_all(self) -> int:
        """Delete every prediction; give how many there were. One being written just now may come after."""
        self.forget_unwritten()
        return await ask(self._cache.purge_all.remote, "cache", self._settings.request_timeout_s)

    async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
        """The model's outcome for each text, in order."""
        return await self._model_calls.predict(texts, timeout_s)

    def correction(self, text_key: str) -> Correction | None:
        """The correction in force for a text."""
        return self._follower.get(text_key)

    async def append(self, submission: Submission) -> Receipt | IntentGraphError:
        """Have a feedback record written; the call may be made twice, its idempotency key makes that one record."""
        (outcome,) = await self._submissions.submit([submission])
        return outcome

    async def _append_many(self, submissions: list[Submission]) -> Sequence[Receipt | IntentGraphError]:
        return await ask(
            lambda: self._feedback.append.remote(submissions), "feedback log", 2 * self._settings.feedback_timeout_s
        )

    async def stats(self) -> LogStats:
        """Counts over the retained log."""
        return await self._ask_log(self._feedback.stats.remote)

    async def page(self, after: str, limit: int, state: str | None) -> Page:
        """Records in the order of the log."""
        return await self._ask_log(lambda: self._feedback.page.remote(after, limit, state))

    async def review(self, feedback_id: str, verdict: Verdict, by: str) -> None:
        """Decide about a correction that waits."""
        await self._ask_log(lambda: self._feedback.review.remote(feedback_id, verdict, by))

    async def delete(self, feedback_id: str, by: str) -> None:
        """Remove a record."""
        await self._ask_log(lambda: self._feedback.delete.remote(feedback_id, by))

    async def erase(self, user_id: str, by: str) -> int:
        """Remove a user's records; give how many."""
        return await self._ask_log(lambda: self._feedback.erase.remote(user_id, by))

    async def acknowledge(self, feedback_id: str) -> None:
        """Move the training cursor."""
        await self._ask_log(lambda: self._feedback.acknowledge.remote(feedback_id))

    async def patterns(self, limit: int) -> tuple[list[Tally], list[tuple[Contest, str]], float]:
        """The counters, up to `limit` contested texts, and the log's time in seconds since 1970."""
        return await self._ask_log(lambda: self._feedback.patterns.remote(limit))

    async def _ask_log(self, call: Callable[[], Awaitable[R]]) -> R:
        """Await a call that may walk the whole log: it has the time that a request has."""
        return await ask(call, "feedback log", self._settings.request_timeout_s)

    async def health(self) -> HealthResponse:
        """Ask every part for a sign of life, at once. Only a model that is away keeps the service from answering."""
        model, cache, feedback = await asyncio.gather(
            _probe(self._model.ping.remote, "model"),
            _probe(self._cache.ping.remote, "prediction store"),
            _probe(self._feedback.ping.remote, "feedback log"),
        )
        corrections = "ok" if self._follower.connected else "not following the log; those held are served"
        parts = {"model": model, "cache": cache, "feedback": feedback, "corrections": corrections}
        details: dict[str, object] = {"corrections_held": self._follower.held}
        return HealthResponse(status=_overall(parts), parts=parts, details=details)

    async def metrics(self) -> bytes:
        """The whole cluster's metrics, summed over replicas."""
        return await scrape_nodes()


def _overall(parts: Mapping[str, str]) -> Literal["ok", "degraded", "unavailable"]:
    if parts["model"] != "ok":
        return "unavailable"
    return "ok" if set(parts.values()) == {"ok"} else "degraded"


async def _probe(ping: Callable[[], Awaitable[bool]], part: str) -> str:
    try:
        return "ok" if await ask(ping, part, PROBE_TIMEOUT_S) else f"the {part} is away"
    except IntentGraphError as error:
        return error.detail
