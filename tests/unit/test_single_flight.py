"""Single flight: one computation for all who want it, and nobody harmed by another's end."""

import asyncio
from collections.abc import Sequence

import pytest

from deployments.core.errors import Overloaded, Unavailable
from deployments.core.single_flight import SingleFlight


class Model:
    """Records what it is asked; answers when `release` is set, first with the `errors` it has."""

    def __init__(self, *errors: Exception) -> None:
        self.calls: list[list[str]] = []
        self.timeouts_s: list[float] = []
        self.ended = 0
        self.release = asyncio.Event()
        self._errors = list(errors)

    async def compute(self, texts: Sequence[str], timeout_s: float) -> list[str]:
        self.calls.append(list(texts))
        self.timeouts_s.append(timeout_s)
        error = self._errors.pop(0) if self._errors else None
        try:
            await self.release.wait()
        finally:
            self.ended += 1
        if error:
            raise error
        return [text.upper() for text in texts]


async def get_all(
    flights: SingleFlight[str, str, str], *texts: str, timeout_s: float = 10
) -> list[asyncio.Task[dict[str, str]]]:
    """One caller for each text, all waiting."""
    callers = [asyncio.create_task(flights.get({text: text}, timeout_s)) for text in texts]
    for _ in range(3):
        await asyncio.sleep(0)
    return callers


async def test_a_thousand_callers_of_one_key_make_one_call():
    """And all get its value."""
    model, joined = Model(), []
    flights = SingleFlight(model.compute, joined=joined.append)
    callers = await get_all(flights, *["a"] * 1000)
    model.release.set()

    assert await asyncio.gather(*callers) == [{"a": "A"}] * 1000
    assert model.calls == [["a"]]
    assert sum(joined) == 999


async def test_keys_that_differ_travel_apart_and_those_of_one_call_together():
    """What a caller begins is one call; only what is under way is left out of it."""
    model = Model()
    flights = SingleFlight(model.compute)
    callers = [asyncio.create_task(flights.get(dict(zip(keys, keys, strict=True)), 10)) for keys in ("ab", "bc", "d")]
    await asyncio.sleep(0)
    model.release.set()

    assert await asyncio.gather(*callers) == [{"a": "A", "b": "B"}, {"b": "B", "c": "C"}, {"d": "D"}]
    assert model.calls == [["a", "b"], ["c"], ["d"]]


async def test_cancelling_half_of_the_callers_fails_none_of_the_rest():
    """The one who began it is among those who leave."""
    model = Model()
    flights = SingleFlight(model.compute)
    callers = await get_all(flights, *["a"] * 10)
    for caller in callers[:5]:
        caller.cancel()
    await asyncio.wait(callers[:5])
    model.release.set()

    assert await asyncio.gather(*callers[5:]) == [{"a": "A"}] * 5
    assert len(model.calls) == 1


async def test_a_computation_nobody_waits_for_is_cancelled_and_not_joined():
    """Whoever comes next has it computed anew."""
    model = Model()
    flights = SingleFlight(model.compute)
    callers = await get_all(flights, "a", "a")
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    (late,) = await get_all(flights, "a")
    model.release.set()

    assert await late == {"a": "A"}
    assert (len(model.calls), model.ended) == (2, 2)


async def test_a_value_is_not_kept_beyond_its_computation():
    """That is the cache's affair."""
    model = Model()
    model.release.set()
    flights = SingleFlight(model.compute)
    for _ in range(2):
        assert await flights.get({"a": "a"}, 10) == {"a": "A"}

    assert len(model.calls) == 2


async def test_a_refusal_is_shared():
    """Each caller asking again would be the overload that it tells of."""
    model = Model(Overloaded("too much"))
    flights = SingleFlight(model.compute)
    callers = await get_all(flights, "a", "a", "a")
    model.release.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 3
    assert len(model.calls) == 1


async def test_those_who_joined_a_call_that_died_make_one_more_together():
    """The one whose call it was has had its chance; a second death is everybody's."""
    model = Model(Unavailable("it died"))
    flights = SingleFlight(model.compute)
    callers = await get_all(flights, "a", "a", "a")
    model.release.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)

    assert [type(outcomes[0]), *outcomes[1:]] == [Unavailable, {"a": "A"}, {"a": "A"}]
    assert len(model.calls) == 2


async def test_a_second_death_is_told():
    """Nobody tries for ever."""
    model = Model(*(Unavailable("it died") for _ in range(9)))
    model.release.set()
    flights = SingleFlight(model.compute)
    outcomes = await asyncio.gather(*(flights.get({"a": "a"}, 10) for _ in range(4)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 4
    assert len(model.calls) == 2


@pytest.mark.parametrize(("hurry_s", "calls"), [(1.0, 2), (6.0, 1)])
async def test_a_flight_begun_in_a_hurry_is_not_joined(hurry_s: float, calls: int):
    """It would end with its own caller's time; with half of one's own time it may be waited for."""
    model = Model()
    flights = SingleFlight(model.compute, clock=lambda: 100.0)
    callers = [*await get_all(flights, "a", timeout_s=hurry_s), *await get_all(flights, "a", timeout_s=10)]
    model.release.set()
    await asyncio.gather(*callers)

    assert model.timeouts_s == [hurry_s, 10.0][:calls]


async def test_a_failure_that_nobody_stayed_for_is_no_noise(caplog: pytest.LogCaptureFixture):
    """Its caller left in the turn in which it failed."""
    model = Model(Overloaded("too much"))
    flights = SingleFlight(model.compute)
    (caller,) = await get_all(flights, "a")
    model.release.set()
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    await asyncio.sleep(0)

    assert not caplog.records


async def test_who_only_joined_asks_again_for_what_was_unavailable():
    """Also where that comes as a value, as for one text of several; who began it is told."""
    calls: list[list[str]] = []
    release = asyncio.Event()

    async def compute(texts: Sequence[str], _timeout_s: float) -> list[str | Unavailable]:
        calls.append(list(texts))
        await release.wait()
        return [Unavailable("late") if len(calls) == 1 and text == "b" else text.upper() for text in texts]

    flights: SingleFlight[str, str, str | Unavailable] = SingleFlight(compute)
    began = asyncio.create_task(flights.get({"a": "a", "b": "b"}, 10))
    await asyncio.sleep(0)
    joined = [asyncio.create_task(flights.get({"a": "a", "b": "b"}, 10)) for _ in range(2)]
    await asyncio.sleep(0)
    release.set()

    assert await asyncio.gather(*joined) == [{"a": "A", "b": "B"}] * 2
    assert isinstance((await began)["b"], Unavailable)
    assert calls == [["a", "b"], ["b"]]
