"""Dynamic batching: many small calls become few full forward passes.

    submit ──▶ prepare, on its own thread ──▶ Scheduler ──▶ run, on its own thread ──▶ one outcome a text
               (tokenising)                   (the queue)    (the forward pass)

A batch is formed when the worker is free, never on a timer: at rest a text waits for nothing, and under load batches
fill by themselves while the pass before them runs. Tokenising what arrives overlaps that pass, and the event loop does
neither. `schedule` decides what goes into a batch; what a text, a token or a forward pass is, only the injected
functions know.
"""

import asyncio
import contextvars
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from deployments.core.busy import BusyShare
from deployments.core.coalesce import Coalescer
from deployments.core.errors import DeadlineExceeded, IntentGraphError, Internal, Overloaded, Unavailable, withheld
from deployments.core.metrics import (
    BATCH_SIZE,
    BATCH_TOKENS,
    DROPPED,
    FORWARD_TIME,
    PADDING_SHARE,
    QUEUE_TOKENS,
    QUEUE_WAIT,
    Metrics,
    NoMetrics,
)
from deployments.core.schedule import Limits, Scheduler, Ticket, late

T = TypeVar("T")  # what is submitted: a text
P = TypeVar("P")  # what waits: the text as tokens
R = TypeVar("R")  # what is answered: a prediction
A = TypeVar("A")
B = TypeVar("B")

DROP_REASONS: dict[type[IntentGraphError], str] = {
    Overloaded: "rejected",
    DeadlineExceeded: "expired",
    Unavailable: "unavailable",
    Internal: "failed",
}
"""Label of `DROPPED` by the error a text got; `cancelled` is one whose caller left before it got any."""

logger = logging.getLogger(__name__)


class Batcher(Generic[T, P, R]):
    """Answers texts in batches; belongs to one event loop.

    Args:
        prepare: Turns texts into what `run` takes, one for one and in order.
        tokens: The length of a prepared item, in tokens.
        run: Answers a batch, one for one and in order. Like `prepare` it may raise anything: it is then called again
            with each half of the items, until the one at fault fails alone. So it must be safe to repeat.
        prepare_executor: Runs `prepare`; one thread. Both executors stay the caller's to shut down.
        run_executor: Runs `run`; one thread, another one.
        limits: What a batch and the queue may cost.
        metrics: Where batches, waits and dropped texts are counted.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Sequence[T]], Sequence[P]],
        tokens: Callable[[P], int],
        run: Callable[[Sequence[P]], Sequence[R]],
        prepare_executor: Executor,
        run_executor: Executor,
        limits: Limits,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def measure(texts: Sequence[T]) -> list[tuple[P, int]]:
            return [(item, max(1, tokens(item))) for item in prepare(texts)]

        # What comes while the tokeniser is busy is tokenised together: each turn of a thread costs more than a text.
        self._prepare: Coalescer[T, tuple[P, int] | IntentGraphError] = Coalescer(
            _Stage("prepare", measure, prepare_executor).outcomes,
            max_items=limits.max_batch_size,
            max_waiting=sys.maxsize,  # the queue is what bounds it
        )
        self._forward = _Stage("forward pass", run, run_executor)
        self._scheduler: Scheduler[_Call[R], P] = Scheduler(limits)
        # A long call leaves the tokeniser to others after each slice: 1,000 texts would hold it for 80 ms or more.
        self._prepare_slice = limits.max_batch_size
        self._metrics = metrics or NoMetrics()
        self._clock = clock
        self._worker: asyncio.Task[None] | None = None
        self._busy = BusyShare(clock)
        self._running_since_s: float | None = None
        self._failed_in_a_row = 0

    @property
    def waiting_texts(self) -> int:
        """Texts waiting for a batch."""
        return len(self._scheduler)

    @property
    def waiting_tokens(self) -> int:
        """Tokens waiting for a batch."""
        return self._scheduler.tokens

    @property
    def queue_delay_s(self) -> float:
        """Expected time until the running batch and all that waits are served, in seconds."""
        return self._scheduler.delay_s(self._clock())

    @property
    def running_s(self) -> float:
        """How long the batch under way has been running, in seconds; 0 when none is."""
        return 0.0 if self._running_since_s is None else self._clock() - self._running_since_s

    @property
    def failed_in_a_row(self) -> int:
        """Batches in which no text was answered, since the last one in which some were."""
        return self._failed_in_a_row

    def take_busy_share(self) -> float:
        """The share of the time since it was last taken, 0 to 1, in which texts waited or were run."""
        return self._busy.take()

    async def submit(self, texts: Sequence[T], *, timeout_s: float) -> list[R | IntentGraphError]:
        """Answer texts, within `timeout_s`.

        Cancelling it withdraws its texts and touches no other call.

        Returns:
            One outcome a text, in order: the answer of `run`, or

            - `Overloaded` (429) for all of them when the queue has no room, or they have waited for too long,
            - `DeadlineExceeded` (503) for those not answered in time,
            - `Unavailable` (503) when an executor takes no work,
            - `Internal` (500) for a text at which `prepare` or `run` raises; the log has the stack.
        """
        if not texts:
            return []
        call = _Call[R](len(texts))
        try:
            async with asyncio.timeout(timeout_s):
                await self._enter(call, texts, timeout_s)
                await call.answered.wait()
        except TimeoutError:
            call.settle_rest(late(timeout_s))
        except IntentGraphError as refusal:
            call.settle_rest(refusal.with_traceback(None))  # its frames hold the texts, and load sheds many
        except asyncio.CancelledError:
            self._metrics.record(DROPPED, call.missing, reason="cancelled")
            raise
        finally:
            self._scheduler.withdraw(call)
            self._count_dropped(call)
            self._show_queue()
        return call.outcomes()

    async def _enter(self, call: "_Call[R]", texts: Sequence[T], timeout_s: float) -> None:
        """Prepare texts and queue them; one that cannot be prepared is settled at once.

        Raises:
            Overloaded: the queue has no room.
        """
        arrived_s = self._clock()
        self._scheduler.require_room(
            len(texts), arrived_s
        )  # a text is a token at least: a full queue refuses before tokenising
        tickets = []
        for index, outcome in enumerate(await self._prepared(texts)):
            if isinstance(outcome, IntentGraphError):
                call.settle(index, outcome)
            else:
                tickets.append(Ticket(call, index, *outcome, arrived_s))
        self._scheduler.admit(call, tickets, now_s=self._clock(), deadline_s=arrived_s + timeout_s)
        self._wake()
        self._show_queue()

    async def _prepared(self, texts: Sequence[T]) -> list[tuple[P, int] | IntentGraphError]:
        """Prepare texts slice by slice."""
        outcomes: list[tuple[P, int] | IntentGraphError] = []
        for start in range(0, len(texts), self._prepare_slice):
            outcomes += await self._prepare.submit(texts[start : start + self._prepare_slice])
        return outcomes

    def _show_queue(self) -> None:
        self._metrics.record(QUEUE_TOKENS, self._scheduler.tokens)

    def _count_dropped(self, call: "_Call[R]") -> None:
        for outcome in call.settled():
            if isinstance(outcome, IntentGraphError):
                self._metrics.record(DROPPED, reason=DROP_REASONS[type(outcome)])

    def _wake(self) -> None:
        """Start the worker if something waits and none runs. It outlives the call that starts it: no context of it."""
        if self._worker is None and self._scheduler:
            self._worker = asyncio.create_task(self._work(), name="batcher", context=contextvars.Context())
            self._worker.add_done_callback(self._replace)

    def _replace(self, worker: asyncio.Task[None]) -> None:
        """Start another worker when one ended while something waits, be it by a defect or a stranger's cancel."""
        self._worker = None
        if not worker.cancelled() and (error := worker.exception()):
            logger.error("the batch worker failed and is replaced", exc_info=withheld(error))
        self._wake()

    async def _work(self) -> None:
        """Answer batch after batch until nothing waits."""
        with self._busy:
            while self._scheduler:
                if batch := self._next_batch():
                    await self._answer(batch)

    def _next_batch(self) -> list[Ticket["_Call[R]", P]]:
        """Take the next batch from the queue and tell those that are not served any more."""
        batch, dropped = self._scheduler.next_batch(self._clock())
        for ticket, error in dropped:
            ticket.call.settle(ticket.index, error)
        return batch

    async def _answer(self, batch: list[Ticket["_Call[R]", P]]) -> None:
        """Run one batch and settle each of its texts, whatever happens."""
        outcomes: Sequence[R | IntentGraphError] = [Unavailable("the batch was interrupted; retry")] * len(batch)
        self._running_since_s = started_s = self._clock()
        try:
            self._show_queue()
            outcomes = await self._forward.outcomes([ticket.item for ticket in batch])
        finally:
            self._running_since_s = None
            for ticket, outcome in zip(batch, outcomes, strict=True):
                ticket.call.settle(ticket.index, outcome)
        answered = any(not isinstance(outcome, IntentGraphError) for outcome in outcomes)
        self._failed_in_a_row = 0 if answered else self._failed_in_a_row + 1
        if not all(isinstance(outcome, Unavailable) for outcome in outcomes):  # then no pass was run
            self._record(batch, started_s, busy_s=self._clock() - started_s)

    def _record(self, batch: list[Ticket["_Call[R]", P]], started_s: float, busy_s: float) -> None:
        """Measure an answered batch."""
        useful = sum(ticket.tokens for ticket in batch)
        padded = max(ticket.tokens for ticket in batch) * len(batch)
        self._scheduler.served(useful, busy_s=busy_s)
        for ticket in batch:
            self._metrics.record(QUEUE_WAIT, started_s - ticket.arrived_s)
        self._metrics.record(BATCH_SIZE, len(batch))
        self._metrics.record(BATCH_TOKENS, padded)
        self._metrics.record(PADDING_SHARE, 1 - useful / padded)
        self._metrics.record(FORWARD_TIME, busy_s)


class _Call(Generic[R]):
    """The texts of one `submit` and what became of each; the first outcome of a text stands."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._outcomes: dict[int, R | IntentGraphError] = {}
        self.answered = asyncio.Event()

    @property
    def missing(self) -> int:
        return self._size - len(self._outcomes)

    def settle(self, index: int, outcome: R | IntentGraphError) -> None:
        self._outcomes.setdefault(index, outcome)
        if not self.missing:
            self.answered.set()

    def settle_rest(self, error: IntentGraphError) -> None:
        for index in range(self._size):
            self.settle(index, error)

    def settled(self) -> Iterable[R | IntentGraphError]:
        return self._outcomes.values()

    def outcomes(self) -> list[R | IntentGraphError]:
        return [self._outcomes[index] for index in range(self._size)]


class _Stage(Generic[A, B]):
    """A function of many items on a thread of its own, which gives one outcome an item whatever it raises."""

    def __init__(self, name: str, function: Callable[[Sequence[A]], Sequence[B]], executor: Executor) -> None:
        self._name = name
        self._function = function
        self._executor = executor

    async def outcomes(self, items: Sequence[A]) -> Sequence[B | IntentGraphError]:
        """Call the function; where it raises, call it with each half: one bad item of n costs 2·log2(n) more calls."""
        results = await self._attempt(items)
        if isinstance(results, Unavailable):
            return [results] * len(items)
        if isinstance(results, _Raised):
            return await self._halves(items, results.error)
        if len(results) != len(items):
            logger.error("%s gave %d results for %d items", self._name, len(results), len(items))
            return [Internal()] * len(items)
        return results

    async def _halves(self, items: Sequence[A], error: BaseException) -> Sequence[B | IntentGraphError]:
        if len(items) == 1:
            logger.error("%s failed for one item", self._name, exc_info=withheld(error))
            return [Internal()]
        logger.warning("%s of %d items raised %s: trying its halves", self._name, len(items), type(error).__qualname__)
        middle = len(items) // 2
        return [*await self.outcomes(items[:middle]), *await self.outcomes(items[middle:])]

    async def _attempt(self, items: Sequence[A]) -> "list[B] | _Raised | Unavailable":
        """Call the function once. What it raises comes back as a value, so what is raised here is the executor's."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, _guarded, self._function, items)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            return Unavailable(f"{self._name} was dropped by its executor")
        except Exception as refusal:  # noqa: BLE001 — an executor may refuse as it likes; its callers get a 503
            logger.warning("the executor of %s takes no work: %s", self._name, refusal)
            return Unavailable(f"{self._name} takes no work")


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a stage's function raised."""

    error: BaseException


def _guarded(function: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> list[B] | _Raised:
    """Call a function on its thread.

    Everything is caught: raised into the event loop, `CancelledError` would pass for the caller's own cancellation,
    `StopIteration` leave the future pending for ever, and `SystemExit` end the loop.
    """
    try:
        return list(function(items))
    except BaseException as error:  # noqa: BLE001
        return _Raised(error)
