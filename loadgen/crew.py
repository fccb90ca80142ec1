"""The worker processes of one run: started together, read while they send, stopped together whatever happens."""

import multiprocessing
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from loadgen.display import Display, Recent
from loadgen.load import Load, LoadError
from loadgen.recording import Recording, Sample
from loadgen.report import ANSWERED_SERIES
from loadgen.worker import LAST_WAIT_S, Tick, work

READY_TIMEOUT_S = 60.0
HEAD_START_S = 0.3
"""From the word go to the first call, for every process to hear it."""
STOP_TIMEOUT_S = LAST_WAIT_S + 4.0
DEAD_AFTER_S = 5.0
DEAD_AFTER_CALLS = 20
UPDATE_INTERVAL_S = 0.5

Ended = Literal["complete", "interrupted", "target died"]


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
        self._in_flight: dict[Connection, int] = {}
        self._unsent: dict[Connection, int] = {}

    @property
    def unsent(self) -> int:
        """Calls that were due while too many were under way."""
        return sum(self._unsent.values())

    def run(self) -> tuple[Ended, float]:
        """Start the workers, gather until they are done, and say how the run ended and after how many seconds.

        Raises:
            LoadError: a worker could not reach the target.
        """
        context = multiprocessing.get_context("spawn")  # a fork would inherit event loops and Ray's threads
        processes: list[BaseProcess] = []
        pipes: list[Connection] = []
        try:
            for worker in range(self._load.workers):
                here, there = context.Pipe()
                process = context.Process(target=work, args=(self._load, worker, self._intent, there), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                pipes.append(here)
            return self._gather_until_done(pipes)
        finally:
            _end(processes, pipes)

    def _gather_until_done(self, pipes: list[Connection]) -> tuple[Ended, float]:
        for pipe in pipes:
            _read_ready(pipe)
        start_s = time.monotonic() + HEAD_START_S
        for pipe in pipes:
            pipe.send(start_s)
        ended: Ended = "complete"
        try:
            if not self._gather(set(pipes), start_s):
                ended = "target died"
        except KeyboardInterrupt:
            ended = "interrupted"
        elapsed_s = time.monotonic() - start_s
        if ended != "complete":
            self._display.tell(f"{ended} after {elapsed_s:.1f} s; stopping {len(pipes)} workers")
            self._stop(set(pipes), start_s)
        return ended, elapsed_s

    def _stop(self, pipes: set[Connection], start_s: float) -> None:
        for pipe in pipes:
            _say_stop(pipe)
        self._gather(pipes, start_s, until_s=time.monotonic() + STOP_TIMEOUT_S)

    def _gather(self, pipes: set[Connection], start_s: float, until_s: float = float("inf")) -> bool:
        """Read ticks until every worker is done; false when the target died meanwhile."""
        next_update_s = 0.0
        while pipes and time.monotonic() < until_s:
            for pipe in wait(list(pipes), timeout=UPDATE_INTERVAL_S):
                assert isinstance(pipe, Connection)
                tick = _read(pipe)
                self._take(pipe, tick, time.monotonic() - start_s)
                if tick.done:
                    pipes.remove(pipe)
            if time.monotonic() >= next_update_s:
                next_update_s = time.monotonic() + UPDATE_INTERVAL_S
                self._show(time.monotonic() - start_s)
            if self._life.is_over() and until_s == float("inf"):
                return False
        return True

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
        if sample.series in ANSWERED_SERIES or sample.series not in ("connection", "timeout", "cancelled"):
            self._failed, self._since_s = 0, None
        elif sample.series == "connection":
            self._failed += 1
            self._since_s = self._since_s or time.monotonic()

    def is_over(self) -> bool:
        if self._since_s is None or self._failed < DEAD_AFTER_CALLS:
            return False
        return time.monotonic() - self._since_s >= DEAD_AFTER_S


def _read_ready(pipe: Connection) -> None:
    if not pipe.poll(READY_TIMEOUT_S):
        raise LoadError(f"a worker was not ready within {READY_TIMEOUT_S:g} s")
    _read(pipe)


def _read(pipe: Connection) -> Tick:
    try:
        tick = pipe.recv()
    except EOFError:
        raise LoadError("a worker ended unexpectedly; its own message stands above") from None
    assert isinstance(tick, Tick)
    if tick.error:
        raise LoadError(tick.error)
    return tick


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
