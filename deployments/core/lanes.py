"""How requests travel to the model: each alone where that is cheap, and else together when they are small.

Over a connection a request goes by itself: nobody waits for another's answer, and who leaves is not computed for. A
handle call costs the same whatever it carries, so there small requests share calls. Each keeps its texts and its time,
for the model is fair by request: what travels together is neither served nor refused together. But a call ends with
the last of its answers, so a large request has a call of its own, in a lane of its own: nobody else waits for its end.
Who leaves a call that others share takes nothing out of it: up to four texts are then computed for nobody.

While the model refuses, most requests are refused here (`throttle`), small and large ones each by what became of their
kind: a queue that has no room for a hundred texts may have it for one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from deployments.core.coalesce import Coalescer
from deployments.core.errors import Overloaded
from deployments.core.metrics import DROPPED, Metrics, NoMetrics
from deployments.core.throttle import Throttle

R = TypeVar("R")

SMALL_REQUEST_TEXTS = 4
"""Most texts of a request that shares a call."""
MAX_CALL_BYTES = 1024 * 1024
"""Inter-replica gRPC takes 4 MiB a message, and answers must fit too. A request is never cut: its hundred
texts of 5,000 code points are 2 MB at most, and parts of it would wait for one another."""


@dataclass(frozen=True, slots=True)
class Request:
    """The texts of one caller, and when it leaves, by the event loop's clock.

    `was_sent`: to a replica that then was gone; the texts may be what ended it.
    """

    texts: Sequence[str]
    leaves_s: float
    was_sent: bool = False

    @property
    def size_bytes(self) -> int:
        """The size in UTF-8, at most."""
        return sum(map(utf8_bytes, self.texts))


class RequestLanes(Generic[R]):
    """Sends each request by `send_alone`; where that raises `ConnectionError`, in a call of `send` with others.

    `send(requests)` returns one list of outcomes a request, in order. See `Coalescer` for what else it may do.

    Args:
        send: Carries requests and brings their outcomes, one a text.
        send_alone: Carries one request. Raises `ConnectionRefusedError` when it did not reach the model, any other
            `ConnectionError` when it may have, without an answer: then it is sent as one that `was_sent`.
        max_requests: Most small requests of a call.
        max_waiting: Most requests of a lane that wait for a call; beyond it `Overloaded`.
        max_in_flight: Calls of a lane under way at once.
        metrics: Where the texts of requests refused here are counted.
        throttle: Makes what each lane is throttled by.
    """

    def __init__(
        self,
        send: Callable[[list[Request]], Awaitable[Sequence[Sequence[R]]]],
        *,
        send_alone: Callable[[Request], Awaitable[Sequence[R]]],
        max_requests: int,
        max_waiting: int,
        max_in_flight: int,
        metrics: Metrics | None = None,
        throttle: Callable[[], Throttle] = Throttle,
    ) -> None:
        def lane(max_items: int) -> _Lane[R]:
            calls = Coalescer(
                send,
                max_items=max_items,
                max_waiting=max_waiting,
                max_in_flight=max_in_flight,
                size_bytes=lambda request: request.size_bytes,
                max_bytes=MAX_CALL_BYTES,
            )
            return _Lane(calls, throttle())

        self._send_alone = send_alone
        self._small, self._large = lane(max_requests), lane(1)
        self._metrics = metrics or NoMetrics()

    async def submit(self, texts: Sequence[str], *, timeout_s: float) -> list[R]:
        """Have the texts of one caller answered; outcomes come in their order.

        Raises:
            Overloaded: too many requests wait already, or the model has just refused others (429).
            Exception: what `send` raised.
        """
        leaves_s = asyncio.get_running_loop().time() + timeout_s
        lane = self._small if len(texts) <= SMALL_REQUEST_TEXTS else self._large
        try:
            lane.throttle.enter()
        except Overloaded:
            self._metrics.record(DROPPED, len(texts), reason="throttled")
            raise
        outcomes = await self._send(lane, Request(texts, leaves_s))
        lane.learn(outcomes)
        return list(outcomes)

    async def _send(self, lane: "_Lane[R]", request: Request) -> Sequence[R]:
        try:
            return await self._send_alone(request)
        except ConnectionRefusedError:
            pass
        except ConnectionError:
            request = replace(request, was_sent=True)
        try:
            (outcomes,) = await lane.calls.submit([request])
        except Overloaded:
            self._metrics.record(DROPPED, len(request.texts), reason="rejected")
            raise
        return outcomes


@dataclass(frozen=True, slots=True)
class _Lane(Generic[R]):
    """The calls of one kind of request, and what became of the latest."""

    calls: Coalescer[Request, Sequence[R]]
    throttle: Throttle

    def learn(self, outcomes: Sequence[R]) -> None:
        refusal = next((each for each in outcomes if isinstance(each, Overloaded)), None)
        if refusal:
            self.throttle.refused(refusal)
        else:
            self.throttle.accepted()


def utf8_bytes(text: str) -> int:
    """The size of a text in UTF-8, at most."""
    return 4 * len(text)
