"""Single flight: callers who want the same value at the same time have it computed once.

The computation belongs to no caller: it goes on when the one who began it leaves, and ends when the last one does. So
nobody leads, and nobody's end must be dealt with. Method: Go's `golang.org/x/sync/singleflight`, with cancellation.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.core.errors import Unavailable

K = TypeVar("K")
A = TypeVar("A")
R = TypeVar("R")

MIN_TIME_SHARE = 0.5
"""A flight is joined by those it leaves at least this share of their time: one begun in a hurry ends too soon."""


@dataclass(eq=False, slots=True)
class _Flight(Generic[K, R]):
    places: dict[K, int]
    call: asyncio.Task[Sequence[R]]
    leaves_s: float
    waiting: int = 0


class SingleFlight(Generic[K, A, R]):
    """Turns `get` calls that overlap in a key into one computation of it.

    Args:
        compute: Gives one result an argument, in order, within so many seconds. What one `get` begins is one call.
        joined: Told how many values of a `get` come from a flight that was under way.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[A], float], Awaitable[Sequence[R]]],
        *,
        joined: Callable[[int], None] = lambda _values: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compute = compute
        self._joined = joined
        self._clock = clock
        self._flights: dict[K, _Flight[K, R]] = {}

    async def get(self, arguments: Mapping[K, A], timeout_s: float) -> dict[K, R]:
        """The value of each key, computed from its argument by this call or by one under way.

        A failure is shared by all who wait for it, save that those who only joined try once more when it is
        `Unavailable`, raised or as a value: its cause, such as a model replica that died or the time of who began it,
        may have been that call's alone.

        Raises:
            Exception: what `compute` raised.
        """
        leaves_s = self._clock() + timeout_s
        flights = self._take_off(arguments, leaves_s)
        begun_here = {id(flight) for flight in flights.values() if not flight.waiting}
        if joined := sum(id(flight) not in begun_here for flight in flights.values()):
            self._joined(joined)
        try:
            found = await self._land(flights)
        except Unavailable:
            if not joined:
                raise
            return await self._land(self._take_off(arguments, leaves_s))
        if again := {
            key: arguments[key]
            for key, value in found.items()
            if isinstance(value, Unavailable) and id(flights[key]) not in begun_here
        }:
            found |= await self._land(self._take_off(again, leaves_s))
        return found

    def _take_off(self, arguments: Mapping[K, A], leaves_s: float) -> dict[K, _Flight[K, R]]:
        """Find a flight for each key, or begin one for all that have none."""
        flights = {key: flight for key in arguments if (flight := self._joinable(key, leaves_s))}
        if alone := [key for key in arguments if key not in flights]:
            flight = self._begin(alone, [arguments[key] for key in alone], leaves_s)
            flights |= dict.fromkeys(alone, flight)
        return flights

    def _joinable(self, key: K, leaves_s: float) -> _Flight[K, R] | None:
        flight, now_s = self._flights.get(key), self._clock()
        if flight and flight.leaves_s - now_s >= MIN_TIME_SHARE * (leaves_s - now_s):
            return flight
        return None

    def _begin(self, keys: list[K], arguments: list[A], leaves_s: float) -> _Flight[K, R]:
        # In nobody's context: Serve cancels what a request's context started when its client leaves.
        call = asyncio.create_task(self._awaited(arguments, leaves_s - self._clock()), context=contextvars.Context())
        flight = _Flight({key: place for place, key in enumerate(keys)}, call, leaves_s)
        self._flights |= dict.fromkeys(keys, flight)
        call.add_done_callback(lambda _call: self._ended(flight))
        return flight

    async def _awaited(self, arguments: Sequence[A], timeout_s: float) -> Sequence[R]:
        return await self._compute(arguments, timeout_s)

    async def _land(self, flights: Mapping[K, _Flight[K, R]]) -> dict[K, R]:
        """Wait for flights; one that nobody waits for any longer is cancelled, or forgotten with its values.

        Until then its values can be joined: the first who waited has yet to take its turn and keep them elsewhere.
        """
        awaited = set(flights.values())
        _change_waiting(awaited, 1)
        try:
            await asyncio.wait({flight.call for flight in awaited})
        finally:
            _change_waiting(awaited, -1)
            for flight in awaited:
                if not flight.waiting:
                    flight.call.cancel()
                    self._forget(flight)
        return {key: flight.call.result()[flight.places[key]] for key, flight in flights.items()}

    def _ended(self, flight: _Flight[K, R]) -> None:
        # Asking for the exception also marks it seen, for when everybody has left.
        if (
            flight.call.cancelled()
            or flight.call.exception()
            or any(isinstance(value, Unavailable) for value in flight.call.result())
        ):
            self._forget(flight)

    def _forget(self, flight: _Flight[K, R]) -> None:
        for key in flight.places:
            if self._flights.get(key) is flight:
                del self._flights[key]


def _change_waiting(flights: Iterable[_Flight[K, R]], by: int) -> None:
    for flight in flights:
        flight.waiting += by
