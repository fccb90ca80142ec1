"""Which waiting items make the next batch: dynamic batching as a pure data structure.

No clock, thread or event loop in here: time is an argument, so every property is tested without waiting. When a batch
is formed, who runs it and who is told what became of it is `batching`'s part.

An item costs its length in tokens, a batch its *padded* tokens: longest × count. Three rules decide a batch:

    who leads     the calls that wait take turns; the call whose turn it is gives its oldest item, which always goes
    who rides     of the items next in turn, those nearest the lead in length, equal lengths in turn
    who is left   whatever would break `max_batch_size`, `max_batch_tokens` or add more padding than another pass costs

Invariant: of n waiting calls, each has its oldest item in one of the next n batches, whatever arrives meanwhile.
For every batch takes the head of the rotation, puts its call at the back, and newcomers join at the back. So a call
of one text that finds n - 1 calls waiting goes within n batches, however many texts those carry; and item i (from 0)
of a call goes within (i + 1) · m, m being the most calls that wait at once, itself bounded by `max_queue_tokens`.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from deployments.core.errors import Overloaded

C = TypeVar("C", bound=Hashable)
P = TypeVar("P")

LOOKAHEAD = 4
"""Batches' worth of items considered for one batch: enough to find near lengths, and sorted in microseconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch and the whole queue may cost, in tokens.

    `pass_overhead_tokens` is the fixed cost of a forward pass, as the tokens that take as long; padding beyond it is
    dearer than a second pass. It is measured when the model is loaded: some ten with ONNX Runtime on a CPU, some sixty
    with torch, thousands on a GPU.
    """

    max_batch_tokens: int
    max_batch_size: int
    max_queue_tokens: int
    pass_overhead_tokens: int = 64

    def __post_init__(self) -> None:
        if min(self.max_batch_tokens, self.max_batch_size, self.max_queue_tokens) < 1 or self.pass_overhead_tokens < 0:
            raise ValueError(f"limits must be positive: {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[C, P]):
    """One item in the queue: number `index` of `call`, `tokens` ≥ 1 long, here since `arrived_s`."""

    call: C
    index: int
    item: P
    tokens: int
    arrived_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Line(Generic[C, P]):
    """What waits of one call, by index, oldest first."""

    deadline_s: float
    tickets: dict[int, Ticket[C, P]]


class Scheduler(Generic[C, P]):
    """The bounded queue of one model and the order in which it is served. See the module for the rules."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rotation: OrderedDict[C, _Line[C, P]] = OrderedDict()
        self._tokens = 0
        self._drain = DrainRate()

    def __len__(self) -> int:
        """Items waiting."""
        return sum(len(line.tickets) for line in self._rotation.values())

    def __bool__(self) -> bool:
        return bool(self._rotation)

    @property
    def tokens(self) -> int:
        """Tokens waiting."""
        return self._tokens

    def require_room(self, tokens: int) -> None:
        """Refuse a call that would overfill the queue; one that finds it empty is taken whatever its length.

        Raises:
            Overloaded: (429) with the time in which what waits now will have been served.
        """
        if not self._tokens or self._tokens + tokens <= self._limits.max_queue_tokens:
            return
        retry_after_s = self._drain.time_s(self._tokens)
        raise Overloaded(
            f"{self._tokens:,} tokens wait and this call brings {tokens:,} or more; the limit is "
            f"{self._limits.max_queue_tokens:,}; retry in {retry_after_s:.1f} s",
            retry_after_s=retry_after_s,
        )

    def admit(self, call: C, tickets: Sequence[Ticket[C, P]], *, deadline_s: float) -> None:
        """Queue all tickets of a call, or none.

        Raises:
            Overloaded: (429) see `require_room`.
        """
        if not tickets:
            return
        tokens = sum(ticket.tokens for ticket in tickets)
        self.require_room(tokens)
        self._rotation[call] = _Line(deadline_s, {ticket.index: ticket for ticket in tickets})
        self._tokens += tokens

    def withdraw(self, call: C) -> list[Ticket[C, P]]:
        """Take out what still waits of a call, if anything."""
        line = self._rotation.get(call)
        return self._take(list(line.tickets.values())) if line else []

    def withdraw_all(self) -> list[Ticket[C, P]]:
        """Take out everything."""
        return [ticket for call in list(self._rotation) for ticket in self.withdraw(call)]

    def next_batch(self, now_s: float) -> tuple[list[Ticket[C, P]], list[Ticket[C, P]]]:
        """Take out the next batch, lead first, and beforehand everything whose deadline has come.

        Returns:
            The batch (empty when nothing waits) and the expired.
        """
        late = [call for call, line in self._rotation.items() if line.deadline_s <= now_s]
        expired = [ticket for call in late for ticket in self.withdraw(call)]
        if not self._rotation:
            return [], expired
        batch = self._compose()
        self._rotation.move_to_end(batch[0].call)
        return self._take(batch), expired

    def served(self, tokens: int, *, busy_s: float) -> None:
        """Learn how long a batch took: `tokens` without padding, `busy_s` of the worker's time."""
        self._drain.observe(tokens, busy_s)

    def _compose(self) -> list[Ticket[C, P]]:
        """Choose a batch: the lead, then its neighbours in length while they fit."""
        lead, *others = islice(self._in_turn(), LOOKAHEAD * self._limits.max_batch_size)
        others.sort(key=lambda ticket: abs(ticket.tokens - lead.tokens))  # stable: equal lengths stay in turn
        batch, longest, useful = [lead], lead.tokens, lead.tokens
        for ticket in others:
            if len(batch) == self._limits.max_batch_size:
                break
            if self._fits(len(batch) + 1, max(longest, ticket.tokens), useful + ticket.tokens):
                batch.append(ticket)
                longest, useful = max(longest, ticket.tokens), useful + ticket.tokens
        return batch

    def _fits(self, count: int, longest: int, useful: int) -> bool:
        """Whether so many items, padded to the longest, keep the budget and are cheaper in one pass than in two."""
        padded = longest * count
        return padded <= self._limits.max_batch_tokens and padded - useful <= self._limits.pass_overhead_tokens

    def _in_turn(self) -> Iterator[Ticket[C, P]]:
        """Every ticket in turn: the oldest of each call in rotation, then the second of each, and so on."""
        lap: Iterable[Iterator[Ticket[C, P]]] = (iter(line.tickets.values()) for line in self._rotation.values())
        while lap:
            next_lap = []
            for tickets in lap:
                if ticket := next(tickets, None):
                    yield ticket
                    next_lap.append(tickets)
            lap = next_lap

    def _take(self, tickets: list[Ticket[C, P]]) -> list[Ticket[C, P]]:
        """Take tickets out; a call of which nothing waits leaves the rotation."""
        for ticket in tickets:
            waiting = self._rotation[ticket.call].tickets
            del waiting[ticket.index]
            if not waiting:
                del self._rotation[ticket.call]
            self._tokens -= ticket.tokens
        return tickets


class DrainRate:
    """Tokens served in a second of work: a ratio of two sums in which a batch weighs `MEMORY` of the one after it."""

    MEMORY = 0.9
    UNKNOWN_S = 1.0
    RANGE_S = (0.1, 60.0)

    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0

    def observe(self, tokens: int, busy_s: float) -> None:
        """Count one batch."""
        self._tokens = self.MEMORY * self._tokens + tokens
        self._busy_s = self.MEMORY * self._busy_s + busy_s

    def time_s(self, tokens: int) -> float:
        """Estimate the time that serving so many tokens takes, within `RANGE_S`; `UNKNOWN_S` before the first batch."""
        if not self._tokens:
            return self.UNKNOWN_S
        shortest_s, longest_s = self.RANGE_S
        return min(max(tokens * self._busy_s / self._tokens, shortest_s), longest_s)
