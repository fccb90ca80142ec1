"""The life of a classification, without HTTP and without Ray; feedback is `core.feedback`'s.

    local tier ── look up ── predict what is missing ── lay corrections over ── answer ── keep what is fresh

`IntentService` decides; the parts it asks are behind the protocol `Parts`, which the ingress implements with handles to
the other deployments and unit tests with a few lines.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from deployments.core import metrics
from deployments.core.artifact import Artifact
from deployments.core.classification import classify, fits, to_json
from deployments.core.contract import (
    MAX_BATCH,
    PurgeRequest,
    PurgeResponse,
    TypesResponse,
    WarmRequest,
    WarmResponse,
)
from deployments.core.corrections import Correction
from deployments.core.errors import (
    DeadlineExceeded,
    Forbidden,
    IntentGraphError,
    Internal,
    Overloaded,
    Unavailable,
)
from deployments.core.local_tier import Kept, LocalTier
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction
from deployments.core.settings import Settings
from deployments.core.single_flight import SingleFlight
from deployments.core.text import correction_key, prediction_key
from deployments.core.warming import Warming

CacheState = Literal["miss", "hit-local", "hit-redis", "correction", "bypass"]
HIT_STATES = ("hit-local", "hit-redis", "correction")
WARMING_MARGIN_S = 1.0
REFUSAL_PAUSE_S = 0.1
"""So long after it is known a refusal is told, or in half of the time that its caller has left: who asks again at once,
as many do, then takes no more of the processor than who waits for an answer."""


class Parts(Protocol):
    """What the service needs of the rest of the graph. Every call is bounded in time by whoever implements it."""

    async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
        """What the store has under each key; None for a miss. Never raises: a cache that is away is all misses."""

    def unwritten(self, key: str) -> Prediction | None:
        """A kept prediction that is still on its way into the store."""

    def keep(self, predictions: Mapping[str, Prediction]) -> None:
        """Have fresh predictions kept; returns at once, nobody waits for it."""

    async def keep_now(self, predictions: Mapping[str, Prediction]) -> None:
        """Keep predictions; when it returns, the store has them. Raises `Unavailable`."""

    async def purge(self, keys: Sequence[str]) -> int:
        """Delete the predictions under `keys`; give how many there were. Raises `Unavailable`."""

    async def purge_all(self) -> int:
        """Delete every prediction; give how many there were. Raises `Unavailable`."""

    async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
        """The model's outcome for each text, in order."""

    def correction(self, text_key: str) -> Correction | None:
        """The correction in force for a text."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What a request allows: `read` predictions and corrections, `write` fresh predictions."""

    read: bool = True
    write: bool = True

    @classmethod
    def from_header(cls, cache_control: str) -> "CachePolicy":
        """From the request's `Cache-Control` (RFC 9111, section 5.2.1): `no-cache` and `no-store` are understood."""
        if not cache_control:
            return READ_AND_WRITE
        directives = {directive.strip().lower() for directive in cache_control.split(",")}
        if "no-store" in directives:
            return cls(read=False, write=False)
        return cls(read="no-cache" not in directives)


READ_AND_WRITE = CachePolicy()


@dataclass(slots=True)
class Stages:
    """Milliseconds spent in each stage of a request, in order of their start."""

    clock: Callable[[], float]
    spent_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the body as one stage."""
        started = self.clock()
        try:
            yield
        finally:
            self.spent_ms[stage] = (self.clock() - started) * 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """One text's classification, as the JSON that callers see, and where it came from."""

    body: bytes
    cache_state: CacheState


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer for each text of a request, in its order."""

    items: list[Answer]
    stages: Stages

    @property
    def bodies(self) -> list[bytes]:
        """Each text's classification as JSON."""
        return [answer.body for answer in self.items]

    @property
    def cache_states(self) -> list[CacheState]:
        """Where each text's classification came from."""
        return [answer.cache_state for answer in self.items]

    @property
    def classifications(self) -> list[dict[str, Any]]:
        """Each text's classification as plain JSON values."""
        return [json.loads(answer.body) for answer in self.items]


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A look-up that found nothing: when its request came, and the milliseconds it took."""

    started_s: float
    spent_ms: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request allows and wants, when its time ends, and before which purge of the local tier it came."""

    policy: CachePolicy
    scores: bool
    leaves_s: float
    generation: int
    stages: Stages
    looked_up: LookedUp | None = None


class IntentService:
    """Answers what texts ask for."""

    def __init__(
        self,
        settings: Settings,
        artifact: Artifact,
        parts: Parts,
        recorder: metrics.Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._artifact = artifact
        self._parts = parts
        self._metrics = recorder
        self._clock = clock
        self.local_tier = LocalTier(
            max_bytes=settings.local_tier_bytes if settings.enable_caching else 0,
            ttl_s=settings.local_tier_ttl_s,
            correction=self._correction,
            recorder=recorder,
            clock=clock,
        )
        self._flights: SingleFlight[str, str, Outcome] = SingleFlight(
            parts.predict, joined=lambda texts: recorder.record(metrics.JOINED, texts), clock=clock
        )

    async def classify(
        self,
        texts: Sequence[str],
        *,
        policy: CachePolicy | None = None,
        scores: bool = False,
        timeout_s: float | None = None,
        looked_up: LookedUp | None = None,
    ) -> Answers:
        """Classify valid texts; all of them or none. A text that was `looked_up` is not asked of the cache again.

        Raises:
            Overloaded: the model has no time or no room for it (429); raised after `REFUSAL_PAUSE_S`.
            Unavailable: no model answered (503).
            DeadlineExceeded: not within `timeout_s`, or the setting's `request_timeout_s` (503).
            Internal: the model failed on a text (500).
        """
        started_s = looked_up.started_s if looked_up else self._clock()
        limit_s = min(timeout_s or self._settings.request_timeout_s, self._settings.request_timeout_s)
        allowed = (policy or READ_AND_WRITE) if self._settings.enable_caching else CachePolicy(read=False, write=False)
        asked = _Asked(allowed, scores, started_s + limit_s, self.local_tier.generation, Stages(self._clock), looked_up)
        answers = self._at_hand(texts, asked) if allowed.read else {}
        if rest := [text for text in dict.fromkeys(texts) if text not in answers]:
            try:
                async with _deadline(limit_s):
                    answers |= await self._fetch(rest, asked)
            except Exception as error:
                self._metrics.record(metrics.REQUESTS, len(texts), status=_request_status(error))
                if isinstance(error, Overloaded):
                    await asyncio.sleep(min(REFUSAL_PAUSE_S, (asked.leaves_s - self._clock()) / 2))
                raise
        items = [answers[text] for text in texts]
        self._count(items, self._clock() - started_s)
        return Answers(items, asked.stages)

    def at_hand(self, text: str) -> Answer | None:
        """What `classify` would answer for a text, if the local tier has it; counted as its answer. Costs 5 µs."""
        started_s = self._clock()
        answer = self._local(text, scores=False)
        if answer:
            self._metrics.record(metrics.LOCAL_LOOKUPS, result="hit")
            self._count((answer,), self._clock() - started_s)
        return answer

    async def look_up(self, text: str) -> Answer | LookedUp:
        """What `classify` would answer for a text that the cache deployment has; counted as its answer."""
        started_s = self._clock()
        asked = _Asked(READ_AND_WRITE, False, math.inf, self.local_tier.generation, Stages(self._clock))
        key = self._key(text)
        found = await self._look_up([key])
        spent_s = self._clock() - started_s
        if key not in found:
            return LookedUp(started_s, 1000 * spent_s)
        answer = self._answer(text, *found[key], asked)
        self._metrics.record(metrics.LOCAL_LOOKUPS, result="miss")
        self._count((answer,), spent_s)
        return answer

    def _at_hand(self, texts: Sequence[str], asked: _Asked) -> dict[str, Answer]:
        """Answer what the local tier has."""
        with asked.stages.measure("local"):
            found = {text: self._local(text, scores=asked.scores) for text in texts}
        answers = {text: answer for text, answer in found.items() if answer}
        self._metrics.record(metrics.LOCAL_LOOKUPS, len(answers), result="hit")
        self._metrics.record(metrics.LOCAL_LOOKUPS, len(found) - len(answers), result="miss")
        return answers

    def _local(self, text: str, *, scores: bool) -> Answer | None:
        kept = self.local_tier.get(text, scores=scores)
        return Answer(kept.body, "correction" if kept.correction else "hit-local") if kept else None

    async def _fetch(self, texts: Sequence[str], asked: _Asked) -> dict[str, Answer]:
        """Answer distinct texts from the cache deployment and the model."""
        keys = {text: self._key(text) for text in texts}
        found: dict[str, tuple[Prediction, CacheState]] = {}
        if asked.looked_up:
            asked.stages.spent_ms["cache"] = asked.looked_up.spent_ms
            found = self._unwritten(keys.values())
        elif asked.policy.read:
            with asked.stages.measure("cache"):
                found = await self._look_up(list(dict.fromkeys(keys.values())))
        if missing := {key: text for text, key in keys.items() if key not in found}:
            with asked.stages.measure("model"):
                found |= {key: (fresh, "miss") for key, fresh in (await self._predict(missing, asked)).items()}
        return {text: self._answer(text, *found[key], asked) for text, key in keys.items()}

    def _answer(self, text: str, prediction: Prediction, cache_state: CacheState, asked: _Asked) -> Answer:
        """Lay the correction in force over a prediction, and have the answer at hand for the next caller."""
        if not asked.policy.read:
            if asked.policy.write:
                self.local_tier.forget(text)  # this prediction is the one to be served from now on
            return Answer(to_json(classify(prediction, None, self._artifact, scores=asked.scores)), "bypass")
        text_key = correction_key(text)
        correction = self._correction(text_key)
        body = to_json(classify(prediction, correction, self._artifact, scores=asked.scores))
        if self._is_own(prediction):
            kept = Kept(body, text_key, correction)
            self.local_tier.put(text, kept, scores=asked.scores, generation=asked.generation)
        return Answer(body, "correction" if correction else cache_state)

    def _key(self, text: str) -> str:
        return prediction_key(text, self._artifact.normalisation, self._artifact.version)

    def _correction(self, text_key: str) -> Correction | None:
        """The correction in force, unless it speaks of labels that the model in service does not have."""
        correction = self._parts.correction(text_key)
        return correction if correction and fits(correction, self._artifact) else None

    def _keep(self, fresh: Mapping[str, Prediction]) -> None:
        if own := {key: prediction for key, prediction in fresh.items() if self._is_own(prediction)}:
            self._parts.keep(own)

    def _is_own(self, prediction: Prediction) -> bool:
        """Whether it may be kept: while an update rolls out, a model replica of the other version may answer."""
        return prediction.model_version == self._artifact.version

    async def _look_up(self, keys: Sequence[str]) -> dict[str, tuple[Prediction, CacheState]]:
        """The predictions that are kept, and where."""
        found = self._unwritten(keys)
        if elsewhere := [key for key in keys if key not in found]:
            stored = zip(elsewhere, await self._parts.look_up(elsewhere), strict=True)
            found |= {key: (prediction, "hit-redis") for key, prediction in stored if prediction}
            # Again: a prediction that came meanwhile was not in the store yet when that was asked.
            found |= self._unwritten(key for key in elsewhere if key not in found)
        return found

    def _unwritten(self, keys: Iterable[str]) -> dict[str, tuple[Prediction, CacheState]]:
        """The predictions that are still on their way into the store, in this replica's memory."""
        return {key: (prediction, "hit-local") for key in keys if (prediction := self._parts.unwritten(key))}

    async def _predict(self, missing: Mapping[str, str], asked: _Asked) -> dict[str, Prediction]:
        """The model's predictions; one for all who ask for a text now, save those who ask the model itself.

        They are kept if the request lets them be, also beside a text at which it fails.
        """
        timeout_s = asked.leaves_s - self._clock()
        if asked.policy.read:
            outcomes = await self._flights.get(missing, timeout_s)
        else:
            outcomes = dict(zip(missing, await self._parts.predict(list(missing.values()), timeout_s), strict=True))
        predictions = {key: each for key, each in outcomes.items() if not isinstance(each, IntentGraphError)}
        if asked.policy.write:
            self._keep(predictions)
        for outcome in outcomes.values():
            if isinstance(outcome, IntentGraphError):
                raise outcome
        return predictions

    def _count(self, answers: Sequence[Answer], duration_s: float) -> None:
        for answer in answers:
            is_hit = answer.cache_state in HIT_STATES
            self._metrics.record(metrics.REQUESTS, status="cache_hit" if is_hit else "success")
            self._metrics.record(metrics.DURATION, duration_s, cache_status="hit" if is_hit else answer.cache_state)

    def refuse(self) -> None:
        """Count a classification request that was refused before it became texts."""
        self._metrics.record(metrics.REQUESTS, status="validation_error")

    async def purge(self, request: PurgeRequest) -> PurgeResponse:
        """Delete kept predictions; corrections and the feedback log stay as they are.

        Of a text, the prediction of the model version in service; those of other versions are asked for by nobody and
        expire. `all` deletes every version's. A prediction computed before the purge may be kept just after it.

        Raises:
            Unavailable: the prediction store did not do it, or not all of it (503); it may be asked again.
        """
        try:
            async with _deadline(self._settings.request_timeout_s):
                if request.texts is None:
                    return PurgeResponse(deleted=await self._parts.purge_all())
                keys = await asyncio.to_thread(self._by_key, request.texts)
                return PurgeResponse(deleted=await self._parts.purge(list(keys)))
        finally:
            self.local_tier.clear()  # the other replicas' tiers hear of it from the store

    async def warm(self, request: WarmRequest, *, timeout_s: float | None = None) -> WarmResponse:
        """Have the predictions of texts kept before anybody asks for them; callers go first, see `warming`.

        When it returns, the prediction store has them: the fresh ones for a whole time to live, those that it had for
        what is left of theirs. Warmed texts count as no classification requests.

        Raises:
            Forbidden: caching is off (403): sending it again cannot help and another body neither, only whoever sets
                `enable_caching` can.
            DeadlineExceeded: not all of it within `timeout_s`, or the setting's `request_timeout_s` (503).
            Unavailable: no model answered, or the prediction store did not keep what was computed (503).
            Internal: the model failed on a text (500); all others are computed and kept.

            The last three tell how far it came. What was computed stays kept: sent again, it goes on from there.
        """
        self._require_warmable()
        limit_s = min(timeout_s or self._settings.request_timeout_s, self._settings.request_timeout_s)
        warming = self._warming(self._clock() + limit_s)
        try:
            async with asyncio.timeout(limit_s):
                await warming.run(await asyncio.to_thread(self._by_key, request.texts))
        except TimeoutError as error:
            raise DeadlineExceeded(f"not all of it within {limit_s:g} s; {warming}") from error
        except (Unavailable, Internal) as error:
            raise type(error)(f"{error.detail}; {warming}", retry_after_s=error.retry_after_s) from error
        if warming.failed:
            first = request.texts.index(warming.failed[0])
            raise Internal(f"the model failed on {len(warming.failed):,} texts, texts.{first} is the first; {warming}")
        return WarmResponse(
            requested=len(request.texts), already_cached=warming.already_cached, computed=warming.computed
        )

    def _require_warmable(self) -> None:
        if not self._settings.enable_caching:
            raise Forbidden("caching is off (`enable_caching`), so nothing would be kept; switch it on first")

    def _warming(self, leaves_s: float) -> Warming:
        async def predict(texts: Sequence[str]) -> list[Outcome]:
            # A little longer than there is time: so it is always the warming that ends, and tells how far it came.
            timeout_s = leaves_s - self._clock() + WARMING_MARGIN_S
            return [self._own(outcome) for outcome in await self._parts.predict(texts, timeout_s)]

        return Warming(
            look_up=self._parts.look_up,
            predict=predict,
            keep=self._parts.keep_now,
            # So long a caller may wait for others, the way to the model not counted: the portion itself refuses nobody.
            portion_s=self._settings.max_queue_ms / 1000,
            max_portion=min(self._settings.max_batch_size, MAX_BATCH),
            clock=self._clock,
        )

    def _own(self, outcome: Outcome) -> Outcome:
        """The outcome, if it may be kept."""
        if isinstance(outcome, IntentGraphError) or self._is_own(outcome):
            return outcome
        return Unavailable(f"model {outcome.model_version} answered instead of {self._artifact.version}: an update")

    def _by_key(self, texts: Sequence[str]) -> dict[str, str]:
        """The first text of each key, in order. Run it on a thread: a thousand long ones take most of a second."""
        by_key: dict[str, str] = {}
        for text in texts:
            by_key.setdefault(self._key(text), text)
        return by_key

    def types(self) -> TypesResponse:
        """The labels of the model in service."""
        return TypesResponse.of(self._artifact)


@asynccontextmanager
async def _deadline(limit_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"no answer within {limit_s:g} s; try again later or send fewer texts") from error


def _request_status(error: Exception) -> str:
    match error:
        case Overloaded():
            return "overloaded"
        case Unavailable():
            return "unavailable"
        case _:
            return "error"
