"""The life of a request, with a graph of a few lines."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from deployments.core import metrics
from deployments.core.contract import PurgeRequest, WarmRequest
from deployments.core.corrections import Correction
from deployments.core.errors import (
    DeadlineExceeded,
    Forbidden,
    Internal,
    Overloaded,
    Unavailable,
)
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction
from deployments.core.service import REFUSAL_PAUSE_S, Answer, CachePolicy, IntentService, LookedUp
from deployments.core.settings import Settings
from deployments.core.text import correction_key, prediction_key
from tests.unit.fakes import CountingMetrics, FakeParts, artifact, prediction


@pytest.fixture
def parts() -> FakeParts:
    return FakeParts()


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


@pytest.fixture
def service(parts: FakeParts, counted: CountingMetrics) -> IntentService:
    return IntentService(Settings(), artifact(), parts, counted)


async def test_a_hit_is_the_miss_again(service: IntentService, parts: FakeParts):
    """The second answer comes from the cache, equals the first, and asks no model."""
    first = await service.classify(["Hello"])
    second = await service.classify([" hello "])

    assert (first.cache_states, second.cache_states) == (["miss"], ["hit-redis"])
    assert first.classifications == second.classifications
    assert parts.predicted == ["Hello"]


async def test_a_batch_answers_in_order_and_asks_the_model_once_a_text(service: IntentService, parts: FakeParts):
    """Kept, missing and repeated texts come back where they stood."""
    parts.outcomes["b"] = prediction("b", "translation")
    await service.classify(["a"])
    answers = await service.classify(["b", "a", "b"])

    assert [answer["intent"] for answer in answers.classifications] == ["translation", "reasoning", "translation"]
    assert answers.cache_states == ["miss", "hit-redis", "miss"]
    assert parts.predicted == ["a", "b"]


async def test_a_correction_is_laid_over_the_prediction(service: IntentService, parts: FakeParts):
    """The intent is the person's, the complexity the model's, the techniques the table's."""
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    answers = await service.classify(["a"], scores=True)

    assert answers.cache_states == ["correction"]
    assert answers.classifications[0] == {
        "intent": "translation",
        "confidence": 1.0,
        "complexity": "simple",
        "suggested_techniques": ["zero_shot"],
        "metadata": {"model_version": "v1", "source": "correction", "tokens": 1, "truncated": False},
    }


async def test_a_correction_decides_complexity_and_techniques_where_it_names_them(
    service: IntentService, parts: FakeParts
):
    """A corrected complexity also chooses the techniques, unless those were corrected too."""
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", "complex", None, 0.0)
    parts.corrections[correction_key("b")] = Correction("2-0", "translation", "complex", ("few_shot",), 0.0)
    answers = await service.classify(["a", "b"])

    assert [answer["suggested_techniques"] for answer in answers.classifications] == [
        ["chain_of_thought"],
        ["few_shot"],
    ]


async def test_no_cache_reads_nothing_and_keeps_the_fresh_prediction(service: IntentService, parts: FakeParts):
    """It passes corrections by too."""
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    await service.classify(["a"])
    parts.outcomes["a"] = prediction("fresher")
    answers = await service.classify(["a"], policy=CachePolicy.from_header("no-cache"))

    assert answers.cache_states == ["bypass"]
    assert answers.classifications[0]["intent"] == "reasoning"
    assert list(parts.kept.values()) == [prediction("fresher")]


async def test_no_store_neither_reads_nor_keeps(service: IntentService, parts: FakeParts):
    """`no-store` wins over `no-cache`."""
    answers = await service.classify(["a"], policy=CachePolicy.from_header("no-cache, No-Store"))

    assert (answers.cache_states, parts.kept) == (["bypass"], {})


async def test_with_caching_off_everything_is_bypass_and_corrections_are_not_served(parts: FakeParts):
    """`ENABLE_CACHING=false` is the model's own word each time."""
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    service = IntentService(Settings(enable_caching=False), artifact(), parts, CountingMetrics())
    answers = await service.classify(["a"])

    assert (answers.cache_states, parts.kept) == (["bypass"], {})
    assert answers.classifications[0]["metadata"]["source"] == "model"


async def test_one_overloaded_text_fails_its_batch(service: IntentService, parts: FakeParts, counted: CountingMetrics):
    """All or none; each of its texts counts as overloaded."""
    parts.outcomes["b"] = Overloaded("queue full")

    with pytest.raises(Overloaded):
        await service.classify(["a", "b"])
    assert counted.total(metrics.REQUESTS, status="overloaded") == 2


@pytest.mark.parametrize(("timeout_s", "least_s", "most_s"), [(None, REFUSAL_PAUSE_S, 1.0), (0.02, 0, REFUSAL_PAUSE_S)])
async def test_a_refusal_is_told_after_a_pause_for_which_its_caller_has_the_time(
    service: IntentService, parts: FakeParts, timeout_s: float | None, least_s: float, most_s: float
):
    """Who asks again at once is slowed down; who has less time hears of the overload within it."""
    parts.outcomes["a"] = Overloaded("queue full")
    asked_s = time.monotonic()

    with pytest.raises(Overloaded):
        await service.classify(["a"], timeout_s=timeout_s)
    assert least_s <= time.monotonic() - asked_s < most_s


async def test_a_request_that_takes_too_long_is_ended(parts: FakeParts, counted: CountingMetrics):
    """The caller's own time counts when it is shorter."""

    class Stuck(FakeParts):
        async def predict(self, texts: object, timeout_s: float) -> list[object]:
            await asyncio.Event().wait()
            return []

    service = IntentService(Settings(), artifact(), Stuck(), counted)

    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await service.classify(["a"], timeout_s=0.01)
    assert counted.total(metrics.REQUESTS, status="unavailable") == 1


async def test_the_model_gets_the_time_that_the_look_up_left(counted: CountingMetrics):
    """Of ten seconds, three are gone."""
    now_s, given_s = [100.0], []

    class SlowCache(FakeParts):
        async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
            now_s[0] += 3
            return [None for _ in keys]

        async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
            given_s.append(timeout_s)
            return await super().predict(texts, timeout_s)

    service = IntentService(Settings(request_timeout_s=10), artifact(), SlowCache(), counted, clock=lambda: now_s[0])
    await service.classify(["a"])

    assert given_s == [7.0]


async def test_every_text_is_counted_once_with_its_duration(
    service: IntentService, parts: FakeParts, counted: CountingMetrics
):
    """Corrections count as cache hits."""
    parts.corrections[correction_key("c")] = Correction("1-0", "translation", None, None, 0.0)
    await service.classify(["a"])
    await service.classify(["a", "b", "c"])

    assert counted.total(metrics.REQUESTS, status="success") == 2
    assert counted.total(metrics.REQUESTS, status="cache_hit") == 2
    assert counted.observations(metrics.DURATION, cache_status="miss") == 2
    assert counted.observations(metrics.DURATION, cache_status="hit") == 2


async def test_scores_are_given_when_asked_for(service: IntentService):
    """And they sum to 1."""
    answers = await service.classify(["a"], scores=True)

    assert sum(answers.classifications[0]["scores"].values()) == pytest.approx(1)


async def test_a_prediction_of_another_model_version_is_answered_and_not_kept(service: IntentService, parts: FakeParts):
    """While an update rolls out, an old model replica may answer a new ingress: never under the new version's key."""
    parts.outcomes["a"] = replace(prediction("a"), model_version="v0")
    answers = await service.classify(["a", "b"])

    assert answers.classifications[0]["metadata"]["model_version"] == "v0"
    assert [kept.model_version for kept in parts.kept.values()] == ["v1"]


@pytest.mark.parametrize(
    "correction",
    [
        Correction("1-0", "gone", None, None, 0.0),
        Correction("1-0", "translation", "gone", None, 0.0),
        Correction("1-0", "translation", None, ("gone",), 0.0),
    ],
)
async def test_a_correction_from_before_a_change_of_labels_is_not_served(
    service: IntentService, parts: FakeParts, correction: Correction
):
    """The log outlives the artifact; its words must not make a text unanswerable."""
    parts.corrections[correction_key("a")] = correction
    answers = await service.classify(["a"])

    assert answers.cache_states == ["miss"]
    assert answers.classifications[0]["intent"] == "reasoning"


async def test_a_purged_text_is_computed_again_and_others_are_not(service: IntentService, parts: FakeParts):
    """However it is written: one key is one text."""
    await service.classify(["a", "b"])
    purged = await service.purge(PurgeRequest(texts=(" A ", "never seen")))
    answers = await service.classify(["a", "b"])

    assert purged.deleted == 1
    assert answers.cache_states == ["miss", "hit-redis"]


async def test_a_purge_of_all_leaves_corrections(service: IntentService, parts: FakeParts):
    """They are people's word, not a cache."""
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    await service.classify(["a", "b"])
    purged = await service.purge(PurgeRequest(all=True))
    answers = await service.classify(["a", "b"])

    assert purged.deleted == 2
    assert answers.cache_states == ["correction", "miss"]


async def test_a_purge_works_with_caching_off(parts: FakeParts):
    """What was kept before is still in the store."""
    parts.kept["old"] = prediction()
    service = IntentService(Settings(enable_caching=False), artifact(), parts, CountingMetrics())

    assert (await service.purge(PurgeRequest(all=True))).deleted == 1


async def test_a_purge_that_takes_too_long_is_ended():
    """With the time of any other request."""

    class Stuck(FakeParts):
        async def purge_all(self) -> int:
            await asyncio.Event().wait()
            return 0

    service = IntentService(Settings(request_timeout_s=0.01), artifact(), Stuck(), CountingMetrics())

    with pytest.raises(DeadlineExceeded):
        await service.purge(PurgeRequest(all=True))


async def test_a_warmed_text_is_a_hit_at_its_first_request(service: IntentService, parts: FakeParts):
    """However it is written; texts that share a key are computed once."""
    await service.classify(["a"])
    warmed = await service.warm(WarmRequest(texts=("b", " B ", "A", "c", "c")))
    answers = await service.classify(["a", "b", "C"])

    assert (warmed.requested, warmed.already_cached, warmed.computed) == (5, 1, 2)
    assert answers.cache_states == ["hit-redis"] * 3
    assert parts.predicted == ["a", "b", "c"]


async def test_what_is_on_its_way_into_the_store_is_a_hit_but_not_warmed(service: IntentService, parts: FakeParts):
    """The store may yet refuse it."""
    key = prediction_key("a", artifact().normalisation, artifact().version)
    parts.waiting[key] = prediction("a", "translation")
    answers = await service.classify(["a", "b"])
    looked_up = parts.looked_up
    alone = await service.classify(["a"])
    warmed = await service.warm(WarmRequest(texts=("a",)))

    assert answers.cache_states == ["hit-local", "miss"]
    assert (alone.cache_states, parts.looked_up - looked_up) == (["hit-local"], 1)
    assert (warmed.already_cached, warmed.computed) == (0, 1)
    assert list(parts.kept) == [prediction_key("b", artifact().normalisation, artifact().version), key]


async def test_a_prediction_that_comes_during_its_look_up_is_a_hit():
    """It was not in the store yet when that was asked."""

    class Slow(FakeParts):
        async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
            found = await super().look_up(keys)
            self.waiting |= {key: prediction() for key in keys}
            return found

    parts = Slow()
    answers = await IntentService(Settings(), artifact(), parts, CountingMetrics()).classify(["a"])

    assert (answers.cache_states, parts.predicted) == (["hit-local"], [])


async def test_a_prediction_that_came_since_its_text_was_looked_up_is_a_hit(service: IntentService, parts: FakeParts):
    """Nothing is asked of the cache again."""
    parts.waiting[prediction_key("a", artifact().normalisation, artifact().version)] = prediction()
    answers = await service.classify(["a"], looked_up=LookedUp(0.0, 1.0))

    assert (answers.cache_states, parts.looked_up, parts.predicted) == (["hit-local"], 0, [])


async def test_beside_a_text_at_which_the_model_fails_the_others_are_kept(service: IntentService, parts: FakeParts):
    """The request fails; sent again without that text it need not be computed again."""
    parts.outcomes["bad"] = Internal("the model failed")

    with pytest.raises(Internal):
        await service.classify(["a", "bad", "b"])
    answers = await service.classify(["a", "b"])
    assert answers.cache_states == ["hit-redis"] * 2


async def test_warmed_twice_is_computed_once(service: IntentService, parts: FakeParts):
    """The second time there is nothing to do."""
    request = WarmRequest(texts=("a", "b"))
    await service.warm(request)
    warmed = await service.warm(request)

    assert (warmed.already_cached, warmed.computed) == (2, 0)
    assert parts.predicted == ["a", "b"]


async def test_a_warmed_text_is_no_classification_request(service: IntentService, counted: CountingMetrics):
    """Dashboards show what callers ask for."""
    await service.warm(WarmRequest(texts=("a",)))

    assert counted.totals == {}


async def test_with_caching_off_a_warming_is_refused(parts: FakeParts):
    """It would compute for nobody; the message names the setting."""
    service = IntentService(Settings(enable_caching=False), artifact(), parts, CountingMetrics())

    with pytest.raises(Forbidden, match="enable_caching"):
        await service.warm(WarmRequest(texts=("a",)))
    assert parts.predicted == []


async def test_a_warming_that_the_store_does_not_keep_is_said_so(service: IntentService, parts: FakeParts):
    """Unlike a classification it has no other purpose."""
    parts.keep_error = Unavailable("the store is away", retry_after_s=3.0)

    with pytest.raises(Unavailable, match=r"^the store is away; 0 cached already, 0 computed and kept") as refusal:
        await service.warm(WarmRequest(texts=("a",)))
    assert refusal.value.retry_after_s == 3.0


async def test_a_warming_that_takes_too_long_says_how_far_it_came_and_goes_on_from_there():
    """The caller's own time counts when it is shorter; what was computed stays kept."""

    class StuckAtZ(FakeParts):
        stuck = True

        async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
            if self.stuck and "z" in texts:
                await asyncio.Event().wait()
            return await super().predict(texts, timeout_s)

    parts = StuckAtZ()
    service = IntentService(Settings(), artifact(), parts, CountingMetrics())
    await service.classify(["0"])
    request = WarmRequest(texts=(*map(str, range(9)), "z"))

    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s; 1 cached already, 8 computed and kept; sent again"):
        await service.warm(request, timeout_s=0.2)
    parts.stuck = False
    warmed = await service.warm(request)

    assert (warmed.already_cached, warmed.computed) == (9, 1)


async def test_a_full_queue_is_waited_out_within_the_time_of_a_warming(service: IntentService, parts: FakeParts):
    """It is never 429: the one who warms is in no hurry, and has a deadline."""
    parts.outcomes["a"] = Overloaded("queue full", retry_after_s=0.001)

    with pytest.raises(DeadlineExceeded):
        await service.warm(WarmRequest(texts=("a",)), timeout_s=0.05)
    assert len(parts.predicted) > 1


async def test_a_prediction_of_another_model_version_warms_nothing(service: IntentService, parts: FakeParts):
    """While an update rolls out, it must not stand under the new version's key, nor be counted as if it did."""
    parts.outcomes["a"] = replace(prediction("a"), model_version="v0")

    with pytest.raises(Unavailable, match="model v0 answered instead of v1"):
        await service.warm(WarmRequest(texts=("a", "b")))
    assert [kept.model_version for kept in parts.kept.values()] == ["v1"]


async def test_a_text_at_which_the_model_fails_is_named_by_its_place(service: IntentService, parts: FakeParts):
    """The message has no text of anybody's; all others are kept."""
    parts.outcomes["secret"] = Internal()

    with pytest.raises(Internal, match=r"failed on 1 texts, texts\.1 is the first; 0 cached already, 2 computed"):
        await service.warm(WarmRequest(texts=("a", "secret", "b")))
    assert len(parts.kept) == 2


async def test_an_answer_is_at_hand_for_whoever_asks_next(parts: FakeParts, counted: CountingMetrics):
    """From memory: neither the cache nor the model is asked, and the bytes are the same."""
    service = with_local_tier(parts, counted)
    miss = await service.classify(["a", "b"])
    parts.kept.clear()
    hit = await service.classify(["b", "a", "c"])

    assert hit.cache_states == ["hit-local", "hit-local", "miss"]
    assert hit.bodies[:2] == miss.bodies[::-1]
    assert parts.predicted == ["a", "b", "c"]
    assert service.at_hand("a") == Answer(miss.bodies[0], "hit-local")
    assert service.at_hand("A") is None  # another text, for which the store has the prediction


async def test_a_correction_reaches_what_is_at_hand_at_once(parts: FakeParts, counted: CountingMetrics):
    """And its end too; a late prediction of the model changes neither."""
    service = with_local_tier(parts, counted)
    await service.classify(["a"])
    parts.corrections[correction_key("a")] = Correction("1-0", "translation", None, None, 0.0)
    corrected = await service.classify(["a"])
    again = await service.classify(["a"])
    await service.classify(["a"], policy=CachePolicy.from_header("no-cache"))
    after_the_model = await service.classify(["a"])
    parts.corrections.clear()
    undone = await service.classify(["a"])

    states = [answers.cache_states for answers in (corrected, again, after_the_model, undone)]
    assert states == [["correction"], ["correction"], ["correction"], ["hit-redis"]]
    assert undone.classifications[0]["metadata"]["source"] == "model"


async def test_no_cache_renews_what_is_at_hand_and_no_store_does_not(parts: FakeParts, counted: CountingMetrics):
    """What it keeps is what is served from then on."""
    service = with_local_tier(parts, counted)
    await service.classify(["a"])
    parts.outcomes["a"] = prediction("a", "translation")
    await service.classify(["a"], policy=CachePolicy.from_header("no-store"))
    as_before = await service.classify(["a"])
    await service.classify(["a"], policy=CachePolicy.from_header("no-cache"))
    renewed = await service.classify(["a"])

    assert [answers.classifications[0]["intent"] for answers in (as_before, renewed)] == ["reasoning", "translation"]


async def test_an_answer_of_another_model_version_is_not_at_hand(parts: FakeParts, counted: CountingMetrics):
    """While an update rolls out, some come from the model that is on its way."""
    service = with_local_tier(parts, counted)
    parts.outcomes["a"] = replace(prediction("a"), model_version="v2")
    await service.classify(["a"])

    assert service.at_hand("a") is None


async def test_a_purge_leaves_nothing_at_hand(parts: FakeParts, counted: CountingMetrics):
    """Also one that the store did not do: it may have, with its answer lost."""
    service = with_local_tier(parts, counted)
    await service.classify(["a"])
    parts.purge_error = Unavailable("away")
    with pytest.raises(Unavailable):
        await service.purge(PurgeRequest(texts=("b",)))

    assert service.at_hand("a") is None


async def test_many_who_ask_for_a_new_text_at_once_cost_one_prediction(parts: FakeParts, counted: CountingMetrics):
    """However they write it; those who ask the model itself are not among them."""
    service = with_local_tier(parts, counted)
    no_cache = CachePolicy.from_header("no-cache")
    answers = await asyncio.gather(
        *(service.classify([text]) for text in ("a", " A ", "a", "a")), service.classify(["a"], policy=no_cache)
    )

    assert {answer.bodies[0] for answer in answers} == {answers[0].bodies[0]}
    assert [answer.cache_states for answer in answers] == [["miss"]] * 4 + [["bypass"]]
    assert len(parts.predicted) == 2
    assert counted.total(metrics.JOINED) == 3


def with_local_tier(parts: FakeParts, counted: CountingMetrics) -> IntentService:
    service = IntentService(Settings(), artifact(), parts, counted)
    service.local_tier.open()
    return service


async def test_callers_who_come_in_any_turn_of_the_loop_make_one_model_call():
    """Also those whose look-up ended as the model answered: what is computed can be joined until it is kept."""

    class Slow(FakeParts):
        async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
            await asyncio.sleep(0)
            return await super().look_up(keys)

        async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
            await asyncio.sleep(0)
            return await super().predict(texts, timeout_s)

    parts = Slow()
    service = IntentService(Settings(), artifact(), parts, CountingMetrics())
    callers = []
    for _ in range(20):
        callers.append(asyncio.create_task(service.classify(["a"])))
        await asyncio.sleep(0)
    await asyncio.gather(*callers)

    assert parts.predicted == ["a"]
