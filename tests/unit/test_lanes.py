"""Requests share calls and nothing else: not their time, and not each other's wait."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.core import lanes
from deployments.core.errors import Overloaded, Unavailable
from deployments.core.lanes import MAX_CALL_BYTES, SMALL_REQUEST_TEXTS, Request, RequestLanes
from deployments.core.metrics import Metric
from deployments.core.throttle import Throttle


class Wire:
    """Records each call's requests; answers a call when its texts are released."""

    def __init__(self) -> None:
        self.calls: list[list[list[str]]] = []
        self.times_s: list[list[float]] = []
        self.were_sent: list[list[bool]] = []
        self.held: dict[str, asyncio.Event] = {}

    async def send(self, requests: list[Request]) -> list[list[str]]:
        self.calls.append([list(request.texts) for request in requests])
        self.times_s.append([request.leaves_s for request in requests])
        self.were_sent.append([request.was_sent for request in requests])
        for request in requests:
            for text in request.texts:
                if text in self.held:
                    await self.held[text].wait()
        return [[text.upper() for text in request.texts] for request in requests]

    def hold(self, text: str) -> asyncio.Event:
        return self.held.setdefault(text, asyncio.Event())


async def nowhere(_request: Request) -> list[str]:
    """Where there is no connection."""
    raise ConnectionRefusedError


def lanes_of(wire: Wire, **changes: int) -> RequestLanes[str]:
    return RequestLanes(
        wire.send, send_alone=nowhere, **({"max_requests": 10, "max_waiting": 100, "max_in_flight": 1} | changes)
    )


class Recorder:
    """Keeps what is counted."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, dict[str, str]]] = []

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        self.counted.append((metric.name, value, labels))


def submit(lane: RequestLanes[str], *texts: str, timeout_s: float = 60.0) -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(lane.submit(texts, timeout_s=timeout_s))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


LARGE = [f"large {n}" for n in range(SMALL_REQUEST_TEXTS + 1)]


async def test_small_requests_share_a_call_and_keep_their_identity():
    """What waits while a call is in flight travels in the next one, each request with its own texts and time."""
    wire = Wire()
    release = wire.hold("first")
    lane = lanes_of(wire)
    calls = [submit(lane, "first")]
    await turns()
    calls += [submit(lane, "a", "b", timeout_s=10), submit(lane, "c", timeout_s=20)]
    await turns()
    release.set()

    assert await asyncio.gather(*calls) == [["FIRST"], ["A", "B"], ["C"]]
    assert wire.calls == [[["first"]], [["a", "b"], ["c"]]]
    assert wire.times_s[1][1] - wire.times_s[1][0] > 9


async def test_a_request_goes_alone_where_it_can_and_joins_the_others_where_that_ends():
    """Its texts and time go along both ways; one that fails otherwise is not sent again."""
    wire = Wire()
    alone: list[tuple[list[str], float]] = []
    error: Exception | None = None

    async def send_alone(request: Request) -> list[str]:
        alone.append((list(request.texts), request.leaves_s))
        if error:
            raise error
        return [text.lower() for text in request.texts]

    lane: RequestLanes[str] = RequestLanes(
        wire.send, send_alone=send_alone, max_requests=10, max_waiting=100, max_in_flight=1
    )
    assert await asyncio.gather(submit(lane, "A", "B"), submit(lane, "C"), submit(lane, *LARGE)) == [
        ["a", "b"],
        ["c"],
        LARGE,
    ]
    assert wire.calls == []
    error = ConnectionResetError()
    assert await asyncio.gather(submit(lane, "a"), submit(lane, "b")) == [["A"], ["B"]]
    assert wire.calls == [[["a"], ["b"]]]
    assert wire.times_s == [[leaves_s for _, leaves_s in alone[-2:]]]
    assert wire.were_sent == [[True, True]]
    error = ConnectionRefusedError()
    await lane.submit(["a"], timeout_s=60)
    assert wire.were_sent[1:] == [[False]]
    error = Unavailable("late")
    with pytest.raises(Unavailable):
        await lane.submit(["a"], timeout_s=60)
    assert len(wire.calls) == 2


async def test_a_large_request_keeps_no_small_one_waiting():
    """While a large one is under way, with others of its kind behind it, small ones are sent and answered."""
    wire = Wire()
    release = wire.hold(LARGE[0])
    lane = lanes_of(wire)
    large = [submit(lane, *LARGE), submit(lane, *LARGE)]
    await turns()

    assert await asyncio.wait_for(lane.submit(["small"], timeout_s=60), 1) == ["SMALL"]
    assert not any(task.done() for task in large)
    release.set()
    assert await asyncio.gather(*large) == [[text.upper() for text in LARGE]] * 2
    assert wire.calls == [[LARGE], [["small"]], [LARGE]]


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_calls_are_bounded_in_bytes(lengths: list[int]):
    """Whatever the texts, requests that share a call have at most 1 MiB of them, unless a single one has more."""
    unit = "x" * (MAX_CALL_BYTES // 40)  # ten of them, at four bytes a character, make a call
    wire = Wire()

    async def answers() -> list[list[str]]:
        lane = lanes_of(wire, max_in_flight=1)
        return await asyncio.gather(*(lane.submit([unit * length], timeout_s=60) for length in lengths))

    assert [len(answer) for (answer,) in asyncio.run(answers())] == [len(unit) * length for length in lengths]
    for call in wire.calls:
        assert sum(lanes.utf8_bytes(text) for (text,) in call) <= MAX_CALL_BYTES or len(call) == 1


async def test_a_large_request_is_never_cut():
    """Its parts would wait for one another, and be refused for it."""
    texts = ["x" * 5000] * 100
    wire = Wire()

    await lanes_of(wire).submit(texts, timeout_s=60)

    assert wire.calls == [[texts]]


async def test_a_caller_who_leaves_takes_its_request_along():
    """Cancelled while it waits, it is not sent; the requests beside it are."""
    wire = Wire()
    release = wire.hold("first")
    lane = lanes_of(wire)
    first = submit(lane, "first")
    await turns()
    leaver, stayer = submit(lane, "leaver"), submit(lane, "stayer")
    await turns()
    leaver.cancel()
    await turns()
    release.set()

    assert await asyncio.gather(first, stayer) == [["FIRST"], ["STAYER"]]
    assert wire.calls == [[["first"]], [["stayer"]]]


async def test_what_the_model_keeps_refusing_is_refused_before_it_is_sent():
    """Small and large requests each by what became of their kind; the refused texts are counted."""
    sent: list[int] = []

    async def send(requests: list[Request]) -> list[list[str | Overloaded]]:
        sent.extend(len(request.texts) for request in requests)
        full = Overloaded("the queue is full", retry_after_s=3.0)
        return [["answer"] if len(request.texts) == 1 else [full] * len(request.texts) for request in requests]

    recorder = Recorder()
    lane: RequestLanes[str | Overloaded] = RequestLanes(
        send,
        send_alone=nowhere,
        max_requests=10,
        max_waiting=10,
        max_in_flight=1,
        metrics=recorder,
        throttle=lambda: Throttle(clock=lambda: 0.0, random_share=lambda: 0.999),
    )

    while lane._large.throttle.share == 1:
        assert all(isinstance(outcome, Overloaded) for outcome in await lane.submit(LARGE, timeout_s=60))
    sent_large = len(sent)

    with pytest.raises(Overloaded, match="the queue is full") as refusal:
        await lane.submit(LARGE, timeout_s=60)
    assert refusal.value.retry_after_s == 3.0
    assert recorder.counted == [("intent_model_dropped_total", len(LARGE), {"reason": "throttled"})]
    assert await lane.submit(["small"], timeout_s=60) == ["answer"]
    assert sent[sent_large:] == [1]


async def test_as_many_as_the_calls_carry_may_come_at_once():
    """Beside those that may wait: when a replica is gone, all that it had comes in one turn of the event loop."""
    wire = Wire()
    lane = lanes_of(wire, max_requests=10, max_waiting=5, max_in_flight=3)

    answers = await asyncio.gather(*(submit(lane, f"a{n}") for n in range(20)))

    assert answers == [[f"A{n}"] for n in range(20)]


async def test_what_a_full_lane_refuses_is_counted():
    """As rejected, text by text."""
    wire, recorder = Wire(), Recorder()
    release = wire.hold("first")
    lane: RequestLanes[str] = RequestLanes(
        wire.send, send_alone=nowhere, max_requests=10, max_waiting=1, max_in_flight=1, metrics=recorder
    )
    calls = [submit(lane, "first")]
    await turns()
    calls.append(submit(lane, "second"))
    await turns()

    with pytest.raises(Overloaded):
        await lane.submit(["a", "b"], timeout_s=60)

    assert recorder.counted == [("intent_model_dropped_total", 2, {"reason": "rejected"})]
    release.set()
    assert await asyncio.gather(*calls) == [["FIRST"], ["SECOND"]]
