"""Callers that submit feedback through whatever happens to the service, and never take no for an answer.

Each sends a record of its own under its own idempotency key, and sends it again until it is acknowledged; one in so
many sends an old one once more. What they were told is in the `Ledger`.
"""

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from loadgen.feedback_ledger import Acknowledged, Ledger, Record, make_record
from loadgen.http_calls import CREATED, OK, Answer, call
from loadgen.load import LoadError
from loadgen.texts import TextSource
from loadgen.traffic import Traffic

API = "/api/v1/intents"
TIMEOUT_S = 15.0
"""More than the service gives itself to answer."""
HELD_S = 60.0
OVERLOADED, CLIENT_ERROR, SERVER_ERROR = 429, 400, 500


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a caller waits: between two records when it is in no hurry, and before it tries one again."""

    calm_s: float = 0.5
    retry_s: float = 0.2


PAUSES = Pauses()


class Callers:
    """So many callers in threads, sending inside the block; calm at first.

    `again` is the share of calls that repeat an acknowledged one.
    """

    def __init__(
        self, url: str, intents: Sequence[str], *, count: int, seed: int, again: float, pauses: Pauses = PAUSES
    ) -> None:
        self.ledger = Ledger()
        self._url = f"{url}{API}/feedback"
        self._intents = intents
        self._seed = seed
        self._again = again
        self._pauses = pauses
        self._numbers = itertools.count()
        self._texts = TextSource(Traffic.model_validate({"texts": "unique", "text_seed": seed, "lengths": "12:1"}))
        self._hurried = False
        self._over = threading.Event()
        self._turns = [threading.Lock() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(turn, random.Random(f"{seed} caller {number}")), daemon=True)  # noqa: S311
            for number, turn in enumerate(self._turns)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Nobody pauses between two records."""
        self._hurried = True
        try:
            yield
        finally:
            self._hurried = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody has a record on its way.

        Raises:
            LoadError: somebody's is not acknowledged, though it is sent again and again.
        """
        with ExitStack() as held:
            for turn in self._turns:
                if not turn.acquire(timeout=HELD_S):
                    raise LoadError(f"a record is not acknowledged within {HELD_S:g} s of tries")
                held.callback(turn.release)
            yield

    def _run(self, turn: threading.Lock, rng: random.Random) -> None:
        while not self._over.wait(0 if self._hurried else self._pauses.calm_s):
            with turn:
                old = self.ledger.any_acknowledged(rng) if rng.random() < self._again else None
                if old:
                    self._send_again(*old)
                else:
                    self._send_new(next(self._numbers))

    def _send_new(self, number: int) -> None:
        record = make_record(self._seed, number, self._texts.text(number), self._intents)
        self.ledger.sending(record)
        tries = 1
        while (answer := self._tried(record)) is None:
            if self._over.wait(self._pauses.retry_s):
                self.ledger.give_up(record)
                return
            tries += 1
        if isinstance(answer, Acknowledged):
            self.ledger.take(record, answer, tries)
        else:
            self.ledger.refused(record, answer)

    def _send_again(self, feedback_id: str, record: Record) -> None:
        while (answer := self._tried(record)) is None:
            if self._over.wait(self._pauses.retry_s):
                return
        if isinstance(answer, Acknowledged):
            self.ledger.take_again(feedback_id, answer)
        else:
            self.ledger.refused(record, answer)

    def _tried(self, record: Record) -> Acknowledged | str | None:
        """Send a record once; None is for trying again, words are a refusal."""
        try:
            answer = call(self._url, record.body, headers={"Idempotency-Key": record.key}, timeout_s=TIMEOUT_S)
        except OSError as error:
            self.ledger.failed(_name(error))
            return None
        if may_be_retried(answer):
            self.ledger.failed(f"status {answer.status}")
            return None
        return read(answer)


def may_be_retried(answer: Answer) -> bool:
    """Whether a call is to be made again: the service is too busy or not well, or was not asked.

    A refusal of its own is problem+json (RFC 9457); any other one is a proxy's that does not know it yet, or any more.
    """
    refused = answer.status >= CLIENT_ERROR
    own = "problem+json" in answer.headers.get("Content-Type", "")
    return answer.status == OVERLOADED or answer.status >= SERVER_ERROR or (refused and not own)


def read(answer: Answer) -> Acknowledged | str:
    """What an answer that is not to be tried again says: acknowledged, or what it says instead."""
    expected = {CREATED: "recorded", OK: "duplicate"}.get(answer.status)
    try:
        said = answer.json()
        if expected and said["status"] == expected:
            return Acknowledged(said["feedback_id"], duplicate=answer.status == OK)
    except (ValueError, KeyError, TypeError):
        pass
    return f"{answer.status} {answer.body[:200].decode(errors='replace')}"


def _name(error: OSError) -> str:
    """The name of what went wrong, not where: those are counted."""
    reason = getattr(error, "reason", error)
    return type(reason if isinstance(reason, BaseException) else error).__name__
