"""Warming in portions, with a model and a store of a few lines."""

from collections.abc import Mapping, Sequence

import pytest

from deployments.core.errors import IntentGraphError, Internal, Overloaded, Unavailable
from deployments.core.outcomes import Outcome
from deployments.core.prediction import Prediction
from deployments.core.warming import FIRST_PORTION, Warming
from tests.unit.fakes import prediction


class Graph:
    """Predicts in `text_s` a text and `call_s` a call, on a clock of its own.

    `refusals` come first, `outcomes` instead of predictions.
    """

    def __init__(self, *, text_s: float = 1.0, call_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.text_s = text_s
        self.call_s = call_s
        self.kept: dict[str, Prediction] = {}
        self.portions: list[list[str]] = []
        self.slept_s: list[float] = []
        self.refusals: list[Overloaded] = []
        self.outcomes: dict[str, Outcome] = {}
        self.keep_error: IntentGraphError | None = None

    async def look_up(self, keys: Sequence[str]) -> list[Prediction | None]:
        return [self.kept.get(key) for key in keys]

    async def predict(self, texts: Sequence[str]) -> list[Outcome]:
        self.portions.append(list(texts))
        self.now_s += self.call_s + self.text_s * len(texts)
        if self.refusals:
            return [self.refusals.pop(0)] * len(texts)
        return [self.outcomes.get(text, prediction(text)) for text in texts]

    async def keep(self, predictions: Mapping[str, Prediction]) -> None:
        if self.keep_error:
            raise self.keep_error
        self.kept |= predictions

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)

    def warming(self, *, portion_s: float = 8.0, max_portion: int = 64) -> Warming:
        return Warming(
            look_up=self.look_up,
            predict=self.predict,
            keep=self.keep,
            portion_s=portion_s,
            max_portion=max_portion,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    @property
    def sizes(self) -> list[int]:
        return [len(portion) for portion in self.portions]


def named(count: int) -> dict[str, str]:
    return {f"key {number}": f"text {number}" for number in range(count)}


async def test_what_is_kept_already_is_not_computed_again():
    """Only what is missing costs the model anything."""
    graph = Graph()
    graph.kept["key 1"] = prediction()
    warming = graph.warming()
    await warming.run(named(3))

    assert (warming.already_cached, warming.computed) == (1, 2)
    assert graph.portions == [["text 0", "text 2"]]
    assert set(graph.kept) == set(named(3))


async def test_a_portion_takes_the_model_about_the_time_it_may():
    """At a second a text, five seconds are five texts: who comes meanwhile waits for no more."""
    graph = Graph(text_s=1.0)
    await graph.warming(portion_s=5.0).run(named(22))

    assert graph.sizes == [FIRST_PORTION, 5, 5, 4]


async def test_portions_grow_by_twice_at_most_and_to_their_limit():
    """One quick portion may just have been of short texts."""
    graph = Graph(text_s=0.01)
    await graph.warming(max_portion=40).run(named(104))

    assert graph.sizes == [8, 16, 32, 40, 8]


async def test_a_text_that_takes_longer_than_a_portion_may_goes_alone():
    """However slow the model is, it goes on."""
    graph = Graph(text_s=3.0)
    await graph.warming(portion_s=0.5).run(named(10))

    assert graph.sizes == [8, 1, 1]


async def test_what_a_call_takes_by_itself_does_not_keep_portions_small():
    """At 6 s a call and 0.5 s a text, 8 s are four texts, also after one portion was slow for another reason."""

    class Recovers(Graph):
        async def predict(self, texts: Sequence[str]) -> list[Outcome]:
            outcomes = await super().predict(texts)
            self.call_s = 6.0
            return outcomes

    graph = Recovers(text_s=0.5, call_s=40.0)
    await graph.warming(portion_s=8.0).run(named(8 + 1 + 2 + 3 + 4 + 4))

    assert graph.sizes == [8, 1, 2, 3, 4, 4]


async def test_a_full_queue_is_waited_out_and_met_again_with_fewer_texts():
    """For as long as the refusal says; nothing is left out."""
    graph = Graph()
    graph.refusals = [Overloaded("full", retry_after_s=2.5), Overloaded("full", retry_after_s=0.5)]
    warming = graph.warming()
    await warming.run(named(8))

    assert graph.slept_s == [2.5, 0.5]
    assert graph.sizes[:3] == [8, 4, 2]
    assert warming.computed == 8
    assert set(graph.kept) == set(named(8))


async def test_a_refusal_that_is_raised_is_waited_out_too():
    """As the ingress does when it throttles."""

    class Throttled(Graph):
        async def predict(self, texts: Sequence[str]) -> list[Outcome]:
            if self.refusals:
                raise self.refusals.pop()
            return await super().predict(texts)

    graph = Throttled()
    graph.refusals = [Overloaded("throttled", retry_after_s=1.5)]
    warming = graph.warming()
    await warming.run(named(2))

    assert (graph.slept_s, warming.computed) == ([1.5], 2)


async def test_a_store_that_does_not_keep_ends_it():
    """What it computes would be computed for nobody."""
    graph = Graph()
    graph.keep_error = Unavailable("the store is away")
    warming = graph.warming()

    with pytest.raises(Unavailable):
        await warming.run(named(100))
    assert (warming.computed, graph.sizes) == (0, [FIRST_PORTION])


async def test_a_text_at_which_the_model_fails_takes_no_other_with_it():
    """It is named, and all others are kept."""
    graph = Graph()
    graph.outcomes["text 3"] = Internal()
    warming = graph.warming()
    await warming.run(named(20))

    assert (warming.computed, warming.failed) == (19, ["text 3"])
    assert set(graph.kept) == set(named(20)) - {"key 3"}


async def test_a_model_that_goes_away_ends_it_and_what_was_computed_is_kept():
    """Also of the portion in which it went."""
    graph = Graph()
    graph.outcomes["text 1"] = Unavailable("interrupted")
    warming = graph.warming()

    with pytest.raises(Unavailable):
        await warming.run(named(100))
    assert (warming.computed, len(graph.kept), graph.sizes) == (7, 7, [8])
