"""A process that sends its share of the calls on time and reports what became of them.

Open loop: a call is sent when it is due, whatever became of those before it, and its latency counts from then. So a
server that stops for a second shows a second to everyone who would have come meanwhile (Tene, "How NOT to Measure
Latency", 2013). Closed loop: a caller sends again when it is answered, and those waits go unseen.
"""

import asyncio
import contextlib
import gc
import resource
import select
import selectors
import signal
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from loadgen.load import Load, LoadError
from loadgen.recording import Sample
from loadgen.targets import Outcome, Target, target_of
from loadgen.traffic import Call, calls

REPORT_INTERVAL_S = 0.25
LAST_WAIT_S = 1.0
"""Time that calls under way are given when a run is stopped early."""
RECONNECT_PAUSE_S = 0.1
"""What a caller of the closed loop waits when nobody answers, instead of asking again at once."""
STOPPED = Outcome("cancelled", counted=False)


@dataclass(frozen=True, slots=True)
class Tick:
    """What a worker saw since its last tick. `done` with the last one; `error` when the worker gave up."""

    samples: list[Sample]
    in_flight: int
    unsent: int
    done: bool = False
    error: str = ""


class PreciseSelector(selectors.EpollSelector):
    """Waits to the microsecond: epoll counts in milliseconds, and an event loop's timers with it."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector.select`."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def work(load: Load, worker: int, intent: str, pipe: Connection) -> None:
    """Entry point of the process: announce readiness, take the start time from the pipe, send, report.

    The pipe carries a `Tick` when ready, then the start time (`time.monotonic`, one clock for all processes of a
    machine) the other way, then ticks. Anything more from the parent, its end too, means: stop.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _raise_file_limit()
    parent_gone = contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError)
    with parent_gone, asyncio.Runner(loop_factory=_precise_loop) as runner:
        try:
            runner.run(Worker(load, worker, intent, pipe).run())
        except LoadError as error:
            pipe.send(Tick([], 0, 0, done=True, error=str(error)))


def _precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(PreciseSelector())


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Worker:
    """Sends every call whose index is its own modulo the number of workers."""

    def __init__(self, load: Load, worker: int, intent: str, pipe: Connection) -> None:
        self._load = load
        self._pipe = pipe
        self._target: Target = target_of(load, intent)
        self._calls: Iterator[Call] = calls(load.traffic, worker, load.workers)
        self._callers = load.traffic.connections // load.workers + (worker < load.traffic.connections % load.workers)
        self._max_in_flight = max(1, load.max_in_flight // load.workers)
        self._start_s = 0.0
        self._samples: list[Sample] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._unsent = 0
        self._stopping = asyncio.Event()
        self._defect: BaseException | None = None

    async def run(self) -> None:
        """Prepare, wait for the start, send until the calls or the time are over, or the parent says stop."""
        await self._target.open()
        try:
            self._pipe.send(Tick([], 0, 0))
            self._start_s = await asyncio.to_thread(self._pipe.recv)
            asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._stop)
            gc.freeze()  # what is loaded stays; a collection through all of torch or Ray would show as lag
            await self._send_and_report()
        finally:
            await self._target.close()

    def _stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._stopping.set()

    async def _send_and_report(self) -> None:
        finished = asyncio.Event()
        reporting = asyncio.create_task(self._report_until(finished))
        closed = self._load.traffic.arrivals == "closed"
        sending = asyncio.create_task(self._closed_loop() if closed else self._open_loop())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # a defect must end the run, not look like its end
        sending.cancel()
        await self._finish(stopping)
        if self._defect:
            raise self._defect
        stopping.cancel()
        finished.set()
        await reporting

    async def _open_loop(self) -> None:
        for call in self._calls:
            assert call.at_s is not None
            due_s = self._start_s + call.at_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))  # gives way to answers even when it is late
            if len(self._under_way) >= self._max_in_flight:
                self._unsent += 1
                continue
            self._start(self._measure(call, due_s))

    def _start(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(sending)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._defect = error
            self._stopping.set()

    async def _closed_loop(self) -> None:
        await asyncio.sleep(self._start_s - time.monotonic())
        end_s = self._start_s + self._load.traffic.warmup_s + self._load.traffic.duration_s
        for _ in range(self._callers):
            self._start(self._caller(end_s))
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _caller(self, end_s: float) -> None:
        while not self._stopping.is_set() and time.monotonic() < end_s:
            await self._measure(next(self._calls), None)
            if self._samples and self._samples[-1].series == "connection":
                await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _measure(self, call: Call, due_s: float | None) -> None:
        sent_s = time.monotonic()
        due_s = due_s or sent_s
        try:
            outcome = await self._send_until_cancelled(call)
        except asyncio.CancelledError:
            self._record(call, due_s, sent_s, STOPPED)
            raise
        self._record(call, due_s, sent_s, outcome)

    def _record(self, call: Call, due_s: float, sent_s: float, outcome: Outcome) -> None:
        feedback = call.kind == "feedback"
        self._samples.append(
            Sample(
                at_s=due_s - self._start_s,
                lag_s=sent_s - due_s,
                latency_s=time.monotonic() - due_s,
                series=_series(call, outcome),
                caches=() if feedback else outcome.caches,
                texts=len(call.texts),
                counted=outcome.counted,
                feedback=feedback,
                detail=outcome.detail,
            )
        )

    async def _send_until_cancelled(self, call: Call) -> Outcome:
        if call.cancel_after_s is None:
            return await self._target.send(call)
        try:
            async with asyncio.timeout(call.cancel_after_s):
                return await self._target.send(call)
        except TimeoutError:
            return STOPPED

    async def _finish(self, stopping: asyncio.Task[bool]) -> None:
        """Wait for what is under way: by itself until its own time limit, but briefly once a stop is asked for."""
        waiting = asyncio.ensure_future(asyncio.wait(self._under_way)) if self._under_way else None
        if waiting is None:
            return
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await asyncio.wait({waiting}, timeout=LAST_WAIT_S)
        for task in self._under_way:
            task.cancel()
        await waiting

    async def _report_until(self, finished: asyncio.Event) -> None:
        """Send ticks regularly, in a thread: a full pipe must not make calls late."""
        done = False
        while not done:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), REPORT_INTERVAL_S)
            done = finished.is_set()
            samples, self._samples = self._samples, []
            tick = Tick(samples, len(self._under_way), self._unsent, done)
            await asyncio.to_thread(self._pipe.send, tick)


def _series(call: Call, outcome: Outcome) -> str:
    if outcome.series != "answered":
        return outcome.series
    if call.cancel_after_s is not None:
        return "cancelled"  # it was answered first; but only hits are, so it counts for nothing
    if call.kind == "classify":
        return outcome.caches[0]
    return call.kind
