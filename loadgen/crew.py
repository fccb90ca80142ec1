"""The worker processes of one run: started together, read while they send, stopped together whatever happens."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Literal

from loadgen.display import Display, Recent
from loadgen.load import Load, LoadError
from loadgen.recording import Recording, Sample
from loadgen.worker import LAST_WAIT_S, Tick, work

READY_TIMEOUT_S = 60.0
HEAD_START_S = 0.3
"""From the word go to the first call, for every process to hear it."""
STOP_TIMEOUT_S = LAST_WAIT_S + 4.0
DEAD_AFTER_S = 5.0
DEAD_AFTER_CALLS = 20
UPDATE_INTERVAL_S = 0.5

Ended = Literal["complete", "interrupted", "target died", "worker died"]


class Crew:
    """Runs the workers once and fills the recording with what they saw."""

    def __init__(
        self, load: Load, intent: str, recording: Recording, display: Display, predicted_hit_rate: float | None
    ) -> None:
        self._load = load
        self._intent = intent
        self._recording = recording
        self._display = display
        self._predicted_hit_rate = predicted_hit_rate
        self._recent = Recent()
        self._life = _Life()
        self._stopping = False
        self._pipes: list[Connection] = []
        self._in_flight: dict[Connection, int] = {}
        self._unsent: dict[Connection, int] = {}

    @property
    def unsent(self) -> int:
        """Calls that were due while too many were under way."""
        return sum(self._unsent.values())

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start the workers, which get ready by themselves; they end with the block."""
        processes: list[BaseProcess] = []
        try:
            with _stop_signals(signal.SIG_IGN):  # inherited: Ctrl-C reaches the whole group, and this process decides
                for worker in range(self._load.workers):
                    process, pipe = _start(self._load, worker, self._intent)
                    processes.append(process)
                    self._pipes.append(pipe)
            yield
        finally:
            _end(processes, self._pipes)

    def run(self) -> tuple[Ended, float]:
        """Have them send, gather until they are done, and say how the run ended and after how many seconds.

        Raises:
            LoadError: a worker could not reach the target.
        """
        for pipe in self._pipes:
            _read_ready(pipe)
        start_s = time.monotonic() + HEAD_START_S
        for pipe in self._pipes:
            pipe.send(start_s)
        running = set(self._pipes)
        with _stop_signals(self._ask_to_stop):  # a flag, for an exception in the midst of a read would lose samples
            ended = self._gather(running, start_s)
            elapsed_s = time.monotonic() - start_s
            if ended != "complete":
                self._display.tell(f"{ended} after {elapsed_s:.1f} s; stopping {len(running)} workers")
                for pipe in running:
                    _say_stop(pipe)
                self._gather(running, start_s, until_s=time.monotonic() + STOP_TIMEOUT_S)
        return ended, elapsed_s

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _gather(self, running: set[Connection], start_s: float, until_s: float | None = None) -> Ended:
        """Read ticks until every worker is done, or something ends the run early, or until a time."""
        next_update_s = 0.0
        while running:
            for pipe in wait(list(running), timeout=UPDATE_INTERVAL_S):
                assert isinstance(pipe, Connection)
                if (tick := _read(pipe)) is None:
                    running.discard(pipe)
                    return "worker died"
                self._take(pipe, tick, time.monotonic() - start_s)
                if tick.done:
                    running.discard(pipe)
            if time.monotonic() >= next_update_s:
                next_update_s = time.monotonic() + UPDATE_INTERVAL_S
                self._show(time.monotonic() - start_s)
            if until_s is not None:
                if time.monotonic() >= until_s:
                    break
            elif self._stopping:
                return "interrupted"
            elif self._life.is_over():
                return "target died"
        return "complete"

    def _take(self, pipe: Connection, tick: Tick, elapsed_s: float) -> None:
        self._in_flight[pipe], self._unsent[pipe] = tick.in_flight, tick.unsent
        for sample in tick.samples:
            self._recording.add(sample)
            self._life.add(sample)
        self._recent.add(tick.samples, elapsed_s)

    def _show(self, elapsed_s: float) -> None:
        in_flight = sum(self._in_flight.values())
        self._display.update(self._recent.view(self._recording, elapsed_s, in_flight, self._predicted_hit_rate))


class _Life:
    """Whether the target still lives: it has died when connections fail for seconds and nothing else happens."""

    def __init__(self) -> None:
        self._failed = 0
        self._since_s: float | None = None

    def add(self, sample: Sample) -> None:
        if sample.series not in ("connection", "timeout", "cancelled"):
            self._failed, self._since_s = 0, None
        elif sample.series == "connection":
            self._failed += 1
            self._since_s = self._since_s or time.monotonic()

    def is_over(self) -> bool:
        if self._since_s is None or self._failed < DEAD_AFTER_CALLS:
            return False
        return time.monotonic() - self._since_s >= DEAD_AFTER_S


def _start(load: Load, worker: int, intent: str) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit event loops and Ray's threads
    here, there = context.Pipe()
    process = context.Process(target=work, args=(load, worker, intent, there), daemon=True)
    process.start()
    there.close()
    return process, here


def _read_ready(pipe: Connection) -> None:
    if not pipe.poll(READY_TIMEOUT_S):
        raise LoadError(f"a worker was not ready within {READY_TIMEOUT_S:g} s")
    if _read(pipe) is None:
        raise LoadError("a worker ended before it began; its own message stands above")


def _read(pipe: Connection) -> Tick | None:
    """A worker's next tick; None when there is no worker any more."""
    try:
        tick = pipe.recv()
    except (EOFError, OSError):
        return None
    assert isinstance(tick, Tick)
    if tick.error:
        raise LoadError(tick.error)
    return tick


@contextmanager
def _stop_signals(handler: Callable[[int, FrameType | None], None] | int) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM handled so inside the block; only the main thread may ask for it, others do without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _say_stop(pipe: Connection) -> None:
    try:
        pipe.send("stop")
    except OSError:
        return  # it has ended already


def _end(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.close()  # a worker that still runs sees it and stops
    for process in processes:
        process.join(STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
