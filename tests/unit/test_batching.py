"""The batcher answers every text once, whatever its functions, executors and callers do."""

import asyncio
import concurrent.futures
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from deployments.core.batching import Batcher
from deployments.core.errors import DeadlineExceeded, IntentGraphError, Internal, Overloaded, Unavailable
from deployments.core.metrics import FORWARD_TIME, Metric
from deployments.core.schedule import Limits

LIMITS = Limits(max_batch_tokens=1000, max_batch_size=8, max_queue_tokens=1000, pass_overhead_tokens=1000)


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Held(Executor):
    """Runs what it is given when told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append((Future(), lambda: fn(*args, **kwargs)))
        return self.jobs[-1][0]

    async def run_next(self) -> None:
        await until(lambda: self.jobs)
        future, job = self.jobs.pop(0)
        future.set_result(job())


class Model:
    """Shouts its texts; raises `error` at those in `poison`. A text of n characters has n tokens."""

    def __init__(self, poison: Iterable[str] = (), error: BaseException | None = None) -> None:
        self.prepared: list[list[str]] = []
        self.batches: list[list[str]] = []
        self.poison = set(poison)
        self.error = error or ValueError("poison")

    def prepare(self, texts: Sequence[str]) -> list[str]:
        self.prepared.append(list(texts))
        return list(texts)

    def run(self, batch: Sequence[str]) -> list[str]:
        self.batches.append(list(batch))
        if self.poison.intersection(batch):
            raise self.error
        return [text.upper() for text in batch]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Records:
    """Metrics kept as a list."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
        self.values.append((metric.name.removeprefix("intent_model_"), value, labels))

    def of(self, name: str) -> list[float]:
        return [value for recorded, value, _ in self.values if recorded == name]

    def dropped(self) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for name, value, labels in self.values:
            if name == "dropped_total":
                counts[labels["reason"]] += value
        return counts


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 — turns of the loop are what is waited for
        await asyncio.sleep(0)


def batcher_of(model: Model, **changes: Any) -> Batcher[str, str, str]:
    defaults: dict[str, Any] = {
        "prepare": model.prepare,
        "tokens": len,
        "run": model.run,
        "prepare_executor": Inline(),
        "run_executor": Inline(),
        "limits": LIMITS,
    }
    return Batcher(**(defaults | changes))


def submit(batcher: Batcher[str, str, str], *texts: str, timeout_s: float = 60.0) -> asyncio.Task[Any]:
    return asyncio.ensure_future(batcher.submit(texts, timeout_s=timeout_s))


def kinds(outcomes: Sequence[str | IntentGraphError]) -> list[object]:
    """Outcomes with errors as their types."""
    return [type(outcome) if isinstance(outcome, IntentGraphError) else outcome for outcome in outcomes]


async def test_each_text_gets_its_answer_in_order():
    """Outcomes stand in the order of the texts, however lengths order them in batches."""
    batcher = batcher_of(Model(), limits=Limits(8, 2, 1000, pass_overhead_tokens=0))

    outcomes = await batcher.submit(["ccc", "a", "bb", "a", "ccc"], timeout_s=60)

    assert outcomes == ["CCC", "A", "BB", "A", "CCC"]


async def test_no_texts_no_outcomes():
    """A call without texts is answered at once, with nothing."""
    assert await batcher_of(Model()).submit([], timeout_s=60) == []


async def test_batch_is_formed_when_the_worker_is_free():
    """What arrives during a pass goes together in the next one; the first text waits for nobody."""
    model, forward = Model(), Held()
    batcher = batcher_of(model, run_executor=forward)

    calls = [submit(batcher, "a")]
    await until(lambda: forward.jobs)
    calls += [submit(batcher, "b"), submit(batcher, "c")]
    await until(lambda: batcher.waiting_texts == 2)
    await forward.run_next()
    await forward.run_next()

    assert await asyncio.gather(*calls) == [["A"], ["B"], ["C"]]
    assert model.batches == [["a"], ["b", "c"]]


async def test_tokenising_overlaps_the_forward_pass():
    """While a pass runs, what arrives is prepared and ready for the next one."""
    model, forward = Model(), Held()
    batcher = batcher_of(model, run_executor=forward)

    first, second = submit(batcher, "a"), submit(batcher, "b")
    await until(lambda: forward.jobs)
    third = submit(batcher, "ccc")
    await until(lambda: batcher.waiting_tokens == 3)

    assert model.prepared == [["a", "b"], ["ccc"]]
    assert model.batches == []
    for _ in range(2):
        await forward.run_next()
    assert await asyncio.gather(first, second, third) == [["A"], ["B"], ["CCC"]]


async def test_event_loop_runs_neither_function():
    """Both functions run where their executor says, not on the event loop."""
    model, tokeniser, forward = Model(), Held(), Held()
    batcher = batcher_of(model, prepare_executor=tokeniser, run_executor=forward)

    call = submit(batcher, "a")
    await until(lambda: tokeniser.jobs)
    assert model.prepared == []
    await tokeniser.run_next()
    await until(lambda: forward.jobs)
    assert model.batches == []
    await forward.run_next()

    assert await call == ["A"]


async def test_long_call_leaves_the_tokeniser_to_others():
    """A call of many texts is prepared a slice at a time; a short one is prepared between two slices."""
    model, tokeniser = Model(), Held()
    batcher = batcher_of(model, prepare_executor=tokeniser)

    long = submit(batcher, *"abcdefghijklmnop")
    short = submit(batcher, "z")
    for _ in range(3):
        await tokeniser.run_next()

    assert model.prepared == [list("abcdefgh"), ["z"], list("ijklmnop")]
    assert await short == ["Z"]
    assert await long == list("ABCDEFGHIJKLMNOP")


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        TimeoutError(),
        StopIteration(),
        GeneratorExit(),
        SystemExit(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("stage", ["prepare", "run"])
async def test_poisoned_text_fails_alone(stage: str, error: BaseException):
    """Whatever a function raises at one text, only that text fails, and the batcher answers the next call."""
    model = Model(poison=["bad"], error=error)
    batcher = batcher_of(model, **{stage: model.run})

    outcomes = await batcher.submit(["a", "b", "bad", "c", "d"], timeout_s=60)

    assert kinds(outcomes) == ["A", "B", Internal, "C", "D"]
    assert await batcher.submit(["e"], timeout_s=60) == ["E"]


async def test_poison_costs_a_logarithm_of_passes():
    """One poisoned text of eight costs six passes more: two for each time a batch is halved."""
    model = Model(poison=["x"])

    await batcher_of(model).submit(list("abcdefgx"), timeout_s=60)

    assert [len(batch) for batch in model.batches] == [8, 4, 4, 2, 2, 1, 1]


async def test_poison_touches_no_other_call():
    """Calls that share a batch with a poisoned text are answered."""
    batcher = batcher_of(Model(poison=["bad"]))

    calls = await asyncio.gather(submit(batcher, "a"), submit(batcher, "bad"), submit(batcher, "c"))

    assert [kinds(call) for call in calls] == [["A"], [Internal], ["C"]]


async def test_log_has_the_stack_and_no_text(caplog: pytest.LogCaptureFixture):
    """A failure is logged with type and stack, without the error's message or cause: they may quote the text."""
    error = ValueError("cannot read 'my secret'")
    error.__cause__ = KeyError("my secret")

    await batcher_of(Model(poison=["my secret"], error=error)).submit(["a", "my secret"], timeout_s=60)

    assert "ValueError" in caplog.text
    assert "raise self.error" in caplog.text
    assert "secret" not in caplog.text


async def test_unmeasurable_text_fails_alone():
    """A text whose length cannot be told fails like one that cannot be prepared."""
    lengths = {"a": 1, "b": 1}

    outcomes = await batcher_of(Model(), tokens=lengths.__getitem__).submit(["a", "??", "b"], timeout_s=60)

    assert kinds(outcomes) == ["A", Internal, "B"]


async def test_text_without_tokens_counts_one():
    """A text of no tokens costs one: the queue stays bounded, and no batch has a length of zero."""
    records = Records()

    outcomes = await batcher_of(Model(), tokens=lambda _: 0, metrics=records).submit(["a", "b"], timeout_s=60)

    assert outcomes == ["A", "B"]
    assert records.of("batch_tokens") == [2]


@pytest.mark.parametrize("stage", ["prepare", "run"])
async def test_wrong_number_of_results_fails_every_text(stage: str):
    """With fewer or more results than items nobody can tell whose they are: every item fails, none is guessed."""
    for wrong in (lambda items: items[1:], lambda items: [*items, "x"]):
        outcomes = await batcher_of(Model(), **{stage: wrong}).submit(["a", "b"], timeout_s=60)

        assert kinds(outcomes) == [Internal, Internal]


async def test_no_results_at_all_is_a_failure():
    """A function that returns None fails its texts instead of the worker."""
    outcomes = await batcher_of(Model(), run=lambda _: None).submit(["a", "b"], timeout_s=60)

    assert kinds(outcomes) == [Internal, Internal]


async def test_expired_text_never_costs_a_pass():
    """A text whose deadline comes while it waits is told so, and is in no batch; one in a batch is answered."""
    model, forward, clock, records = Model(), Held(), Clock(), Records()
    batcher = batcher_of(model, run_executor=forward, clock=clock, metrics=records)

    running = submit(batcher, "a", timeout_s=5)
    await until(lambda: forward.jobs)
    late, patient = submit(batcher, "b", timeout_s=5), submit(batcher, "c", timeout_s=50)
    await until(lambda: batcher.waiting_texts == 2)
    clock.now_s = 5.0
    await forward.run_next()
    await forward.run_next()

    assert kinds(await late) == [DeadlineExceeded]
    assert await running == ["A"]
    assert await patient == ["C"]
    assert model.batches == [["a"], ["c"]]
    assert records.dropped() == {"expired": 1}


@pytest.mark.parametrize("stage", ["prepare_executor", "run_executor"])
async def test_stuck_function_does_not_hold_its_callers(stage: str):
    """The answer comes within the timeout even if a function never returns."""
    batcher = batcher_of(Model(), **{stage: Held()})

    outcomes = await batcher.submit(["a"], timeout_s=0.01)

    assert kinds(outcomes) == [DeadlineExceeded]


async def test_cancelled_call_withdraws_its_texts():
    """A cancelled call's waiting texts are in no batch; the texts beside it are answered."""
    model, forward, records = Model(), Held(), Records()
    batcher = batcher_of(model, run_executor=forward, metrics=records)

    running = submit(batcher, "a")
    await until(lambda: forward.jobs)
    cancelled, other = submit(batcher, "b", "c"), submit(batcher, "d")
    await until(lambda: batcher.waiting_texts == 3)
    cancelled.cancel()
    await until(cancelled.done)
    assert records.of("queue_tokens")[-1] == 1
    await forward.run_next()
    await forward.run_next()

    assert cancelled.cancelled()
    assert await asyncio.gather(running, other) == [["A"], ["D"]]
    assert model.batches == [["a"], ["d"]]
    assert records.dropped() == {"cancelled": 2}


async def test_every_text_without_an_answer_is_counted_once():
    """One text fails before its caller leaves, another is left by its caller; those answered count for nothing."""
    model, forward, records = Model(), Held(), Records()
    lengths = {"a": 1, "b": 1}
    batcher = batcher_of(model, run_executor=forward, tokens=lengths.__getitem__, metrics=records)

    running = submit(batcher, "a")
    await until(lambda: forward.jobs)
    leaving, waiting = submit(batcher, "unreadable", "b"), submit(batcher, "b")
    await until(lambda: batcher.waiting_texts == 2)
    leaving.cancel()
    await until(leaving.done)
    await forward.run_next()
    await forward.run_next()
    await asyncio.gather(running, waiting)

    assert records.dropped() == {"cancelled": 1, "failed": 1}


async def test_what_comes_while_the_tokeniser_is_busy_is_tokenised_together():
    """Calls of one text each share a turn of the tokeniser's thread, and each gets its own answer."""
    model, tokeniser = Model(), Held()
    batcher = batcher_of(model, prepare_executor=tokeniser)

    calls = [submit(batcher, "a")]
    await until(lambda: tokeniser.jobs)
    calls += [submit(batcher, text) for text in "bcd"]
    await tokeniser.run_next()
    await tokeniser.run_next()

    assert await asyncio.gather(*calls) == [["A"], ["B"], ["C"], ["D"]]
    assert model.prepared == [["a"], ["b", "c", "d"]]


async def test_queue_delay_is_the_time_of_what_runs_and_waits():
    """By hand: 10 tokens took 1 s; 10 run and 5 wait: 1.5 s, of which one passes in the next 1 s."""
    model, forward, clock = Model(), Held(), Clock()
    limits = Limits(1000, 8, max_queue_tokens=1000, pass_overhead_tokens=0)
    batcher = batcher_of(model, run_executor=forward, limits=limits, clock=clock)
    assert batcher.queue_delay_s == 0
    calls = [submit(batcher, "a" * 10)]
    await until(lambda: forward.jobs)
    clock.now_s = 1.0
    await forward.run_next()
    await calls[0]
    calls += [submit(batcher, "b" * 10)]
    await until(lambda: forward.jobs)
    calls += [submit(batcher, "c" * 5)]
    await until(lambda: batcher.waiting_texts)

    assert batcher.queue_delay_s == pytest.approx(1.5)
    clock.now_s = 2.0
    assert batcher.queue_delay_s == pytest.approx(0.5)
    for _ in range(2):
        await forward.run_next()
    await asyncio.gather(*calls)
    assert batcher.queue_delay_s == 0


async def test_call_cancelled_in_its_pass_touches_no_other():
    """Texts that share a running batch with a cancelled call are answered."""
    forward = Held()
    batcher = batcher_of(Model(), run_executor=forward)

    cancelled, other = submit(batcher, "a"), submit(batcher, "b")
    await until(lambda: forward.jobs)
    cancelled.cancel()
    await until(cancelled.done)
    await forward.run_next()

    assert await other == ["B"]


async def test_full_queue_refuses_before_tokenising():
    """Every text of a refused call is told when to come back, and none is tokenised."""
    model, forward, clock, records = Model(), Held(), Clock(), Records()
    limits = Limits(max_batch_tokens=10, max_batch_size=8, max_queue_tokens=10, pass_overhead_tokens=0)
    batcher = batcher_of(model, run_executor=forward, limits=limits, clock=clock, metrics=records)
    measured = submit(batcher, "aaaaa")
    await until(lambda: forward.jobs)
    clock.now_s = 1.0
    await forward.run_next()
    await measured
    accepted = [submit(batcher, "bbbbbbbbbb")]
    await until(lambda: forward.jobs)
    accepted.append(submit(batcher, "cccccccccc"))
    await until(lambda: batcher.waiting_tokens == 10)
    model.prepared.clear()

    outcomes = await batcher.submit(["d", "e"], timeout_s=60)

    assert kinds(outcomes) == [Overloaded, Overloaded]
    assert [outcome.retry_after_s for outcome in outcomes if isinstance(outcome, Overloaded)] == [
        4.0,
        4.0,
    ]  # (10 + 10) / 5
    assert model.prepared == []
    assert records.dropped() == {"rejected": 2}
    for _ in accepted:
        await forward.run_next()
    assert await asyncio.gather(*accepted) == [["BBBBBBBBBB"], ["CCCCCCCCCC"]]


async def test_overdue_caller_is_refused_when_the_next_batch_is_formed():
    """Under overload, after a pass of ten seconds: one of two that waited makes room, and is told at once."""
    forward, clock, records = Held(), Clock(), Records()
    limits = Limits(100, 1, 1000, pass_overhead_tokens=0, max_queue_s=5.0, tokens_per_s=10.0)
    batcher = batcher_of(Model(), run_executor=forward, limits=limits, clock=clock, metrics=records)
    running = submit(batcher, "a" * 50)
    await until(lambda: forward.jobs)
    waiting = [submit(batcher, "b"), submit(batcher, "c")]
    await until(lambda: batcher.waiting_texts == 2)
    for _ in range(20):
        batcher._scheduler._refusals.observe(0.0, refused=True)
    clock.now_s = 10.0

    await forward.run_next()

    assert kinds(await waiting[0]) == [Overloaded]
    assert records.dropped() == {"rejected": 1}
    await forward.run_next()
    assert [await running, await waiting[1]] == [["A" * 50], ["C"]]


async def test_refusal_leaves_a_settled_text_alone():
    """A text that failed before its call was refused keeps its own error."""
    forward = Held()
    lengths = {"waiting": 8, "long": 9}
    limits = Limits(max_batch_tokens=10, max_batch_size=8, max_queue_tokens=10)
    batcher = batcher_of(Model(), run_executor=forward, limits=limits, tokens=lengths.__getitem__)
    running = submit(batcher, "waiting")
    await until(lambda: forward.jobs)
    waiting = submit(batcher, "waiting")
    await until(lambda: batcher.waiting_texts)

    outcomes = await batcher.submit(["long", "unknown length"], timeout_s=60)

    assert kinds(outcomes) == [Overloaded, Internal]
    for call in (running, waiting):
        await forward.run_next()
        assert await call == ["WAITING"]


@pytest.mark.parametrize("stage", ["prepare_executor", "run_executor"])
async def test_executor_shut_down_is_unavailable(stage: str):
    """An executor that takes no more work fails texts as unavailable, again and again, and hangs nobody."""
    gone = ThreadPoolExecutor(1)
    gone.shutdown()
    records = Records()
    batcher = batcher_of(Model(), **{stage: gone}, metrics=records)

    for _ in range(2):
        assert kinds(await batcher.submit(["a", "b"], timeout_s=60)) == [Unavailable, Unavailable]
    assert records.dropped() == {"unavailable": 4}


@pytest.mark.parametrize("stage", ["prepare_executor", "run_executor"])
async def test_job_dropped_by_its_executor_is_unavailable(stage: str):
    """A job cancelled in its executor's queue fails its texts as unavailable; the next one runs."""
    held = Held()
    batcher = batcher_of(Model(), **{stage: held})

    dropped = submit(batcher, "a")
    await until(lambda: held.jobs)
    held.jobs.pop()[0].cancel()
    assert kinds(await dropped) == [Unavailable]
    following = submit(batcher, "b")
    await held.run_next()

    assert await following == ["B"]


async def test_half_dropped_by_its_executor_keeps_the_other():
    """When the executor goes away between the halves of a failed batch, the half that ran is answered."""
    forward = Held()
    call = submit(batcher_of(Model(poison=["bad"]), run_executor=forward), "a", "bad")

    await forward.run_next()
    await forward.run_next()
    await until(lambda: forward.jobs)
    forward.jobs.pop()[0].cancel()

    assert kinds(await call) == ["A", Unavailable]


async def test_cancelled_worker_is_replaced():
    """If somebody cancels the worker's task its batch fails as unavailable, and what waits is still answered."""
    forward = Held()
    batcher = batcher_of(Model(), run_executor=forward)

    interrupted = submit(batcher, "a")
    await until(lambda: forward.jobs)
    waiting = submit(batcher, "b")
    await until(lambda: batcher.waiting_texts == 1)
    forward.jobs.clear()
    next(task for task in asyncio.all_tasks() if task.get_name() == "batcher").cancel()

    assert kinds(await interrupted) == [Unavailable]
    await forward.run_next()
    assert await waiting == ["B"]


async def test_failed_worker_is_replaced(caplog: pytest.LogCaptureFixture):
    """A defect beside the forward pass, here in the metrics, is logged and costs nobody an answer."""

    class Broken(Records):
        def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
            super().record(metric, value, **labels)
            if metric is FORWARD_TIME:
                raise OSError

    batcher = batcher_of(Model(), metrics=Broken(), limits=Limits(1, 1, 1000))

    outcomes = await batcher.submit(["a", "b", "c"], timeout_s=60)

    assert outcomes == ["A", "B", "C"]
    assert "OSError" in caplog.text


async def test_worker_has_no_context_of_a_call():
    """The worker outlives the call that starts it, so it must not log or trace in that call's name."""
    request_id: ContextVar[str] = ContextVar("request_id", default="none")
    request_id.set("mine")

    outcomes = await batcher_of(Model(), run=lambda batch: [request_id.get() for _ in batch]).submit(
        ["a"], timeout_s=60
    )

    assert outcomes == ["none"]


async def test_metrics_of_a_batch():
    """By hand: texts of 2 and 4 tokens pad to 8, a quarter of it padding; they waited 3 s; the pass took 2 s."""
    forward, clock, records = Held(), Clock(), Records()
    batcher = batcher_of(Model(), run_executor=forward, clock=clock, metrics=records)
    first = submit(batcher, "x")
    await until(lambda: forward.jobs)
    assert records.of("queue_tokens") == [1, 0]
    second = submit(batcher, "aa", "bbbb")
    await until(lambda: batcher.waiting_texts == 2)
    clock.now_s = 3.0
    await forward.run_next()
    await first
    await until(lambda: forward.jobs)
    records_before = len(records.values)
    clock.now_s = 5.0
    await forward.run_next()
    await second

    values = {name: value for name, value, _ in records.values[records_before:]}
    assert values["batch_size"] == 2
    assert values["batch_tokens"] == 8
    assert values["padding_share"] == 0.25
    assert values["queue_wait_seconds"] == 3.0
    assert values["forward_seconds"] == 2.0
    assert records.of("queue_tokens")[-1] == 0
    assert max(records.of("queue_tokens")) == 6
    assert records.dropped() == {}


async def test_the_worker_is_busy_from_the_first_text_to_the_last_answer():
    """By hand: idle for 1 s, at work for 3, idle for 4; a pass under way counts."""
    forward, clock = Held(), Clock()
    batcher = batcher_of(Model(), run_executor=forward, clock=clock)
    clock.now_s = 1.0
    call = submit(batcher, "x")
    await until(lambda: forward.jobs)
    clock.now_s = 2.0
    assert batcher.take_busy_share() == 0.5
    clock.now_s = 4.0
    await forward.run_next()
    await call
    await until(lambda: batcher.waiting_texts == 0)
    clock.now_s = 8.0

    assert batcher.take_busy_share() == pytest.approx(2 / 6)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.text("abcdef", min_size=1, max_size=6), max_size=12), max_size=8),
    poison=st.sets(st.text("abcdef", min_size=1, max_size=2)),
    unreadable=st.sets(st.text("abcdef", min_size=1, max_size=2)),
    size=st.integers(1, 6),
)
def test_every_text_gets_its_own_outcome(calls: list[list[str]], poison: set[str], unreadable: set[str], size: int):
    """Whatever calls run at once and whichever texts are at fault, each outcome is that of its own text."""

    def prepare(texts: Sequence[str]) -> list[str]:
        if unreadable.intersection(texts):
            raise ValueError
        return list(texts)

    async def traffic() -> list[list[str | IntentGraphError]]:
        batcher = batcher_of(Model(poison), prepare=prepare, limits=Limits(12, size, 10_000, pass_overhead_tokens=3))
        return await asyncio.gather(*(batcher.submit(texts, timeout_s=60) for texts in calls))

    outcomes = asyncio.run(traffic())

    failing = poison | unreadable
    assert [kinds(call) for call in outcomes] == [
        [Internal if text in failing else text.upper() for text in texts] for texts in calls
    ]


async def test_on_real_threads():
    """With two real threads, 300 calls at once each get their own answers."""
    model = Model(poison=["text 13"])
    limits = Limits(max_batch_tokens=64, max_batch_size=8, max_queue_tokens=100_000)
    with ThreadPoolExecutor(1) as tokeniser, ThreadPoolExecutor(1) as forward:
        batcher = batcher_of(model, prepare_executor=tokeniser, run_executor=forward, limits=limits)

        outcomes = await asyncio.gather(*(submit(batcher, f"text {i}", f"more {i}") for i in range(300)))

    assert [kinds(call) for call in outcomes] == [
        [Internal if i == 13 else f"TEXT {i}", f"MORE {i}"] for i in range(300)
    ]


async def test_batches_without_an_answer_are_counted_until_one_has_some():
    """They tell a model that answers nothing any more from one that a text makes fail."""
    model = Model(poison=["bad"])
    batcher = batcher_of(model)
    for _ in range(3):
        await batcher.submit(["bad"], timeout_s=60)
    assert batcher.failed_in_a_row == 3

    await batcher.submit(["bad", "good"], timeout_s=60)
    assert batcher.failed_in_a_row == 0


async def test_a_batch_tells_how_long_it_has_been_running():
    """And that none is, before and after it."""
    forward, clock = Held(), Clock()
    batcher = batcher_of(Model(), run_executor=forward, clock=clock)
    assert batcher.running_s == 0

    clock.now_s = 5.0
    call = submit(batcher, "a")
    await until(lambda: forward.jobs)
    clock.now_s = 7.0
    assert batcher.running_s == 2
    await forward.run_next()
    await call
    assert batcher.running_s == 0


async def test_a_pass_that_was_not_run_is_no_measurement():
    """An executor that takes no work does so at once: taken for a pass, it would promise a speed nobody has."""
    worker, records = ThreadPoolExecutor(1), Records()
    worker.shutdown()

    outcomes = await batcher_of(Model(), run_executor=worker, metrics=records).submit(["a"], timeout_s=60)

    assert kinds(outcomes) == [Unavailable]
    assert records.of("forward_seconds") == records.of("batch_size") == []
