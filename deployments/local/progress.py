"""What the user sees while things start and stop: a spinner on a terminal, one line a step anywhere else."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.status import Status


class Progress:
    """Tells what is being waited for and what is done, with the seconds since the start."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._begun = clock()
        self._status: Status | None = None

    def waiting(self, text: str) -> None:
        """Show what is being waited for; nothing off a terminal, where only what is done is told."""
        if not self._console.is_terminal:
            return
        line = f"{self._elapsed}  {text}"
        if self._status is None:
            self._status = self._console.status(line)
            self._status.start()
        self._status.update(line)

    def done(self, text: str) -> None:
        """Tell a step that is done, or an event."""
        self._console.print(f"{self._elapsed}  {text}", markup=False)

    def tell(self, text: str) -> None:
        """Tell something without its time."""
        self._console.print(text, markup=False)

    def rest(self) -> None:
        """Stop the spinner: nothing is being waited for."""
        if self._status:
            self._status.stop()
            self._status = None

    @property
    def _elapsed(self) -> str:
        return f"{self._clock() - self._begun:6.1f} s"


@contextmanager
def told_on_stderr() -> Iterator[Callable[[str], None]]:
    """Gives what shows on standard error how far a command is; nothing off a terminal."""
    progress = Progress(Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        yield progress.waiting
    finally:
        progress.rest()
