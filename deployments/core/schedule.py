"""Which waiting items make the next batch, and which calls may wait: dynamic batching as a pure data structure.

No clock, thread or event loop in here: time is an argument, so every property is tested without waiting. When a batch
is formed, who runs it and who is told what became of it is `batching`'s part.

An item costs its length in tokens, a batch its *padded* tokens: longest × count. Three rules decide a batch:

    who leads     the calls that wait take turns; the call whose turn it is gives its oldest item, which always goes
    who rides     of the items next in turn, those passed over by the last batch, then those nearest the lead in length
    who is left   whatever would break the budgets, or add more padding than another pass costs

Invariant: of n waiting calls, each has its oldest item in one of the next n batches, whatever arrives meanwhile.
For every batch takes the head of the rotation, puts the calls whose oldest item went at the back, and newcomers join
there. So a call of one text that finds n - 1 calls waiting goes within n batches, however many texts those carry; and
item i (from 0) of a call goes within (i + 1) · m, m being the most calls that wait at once.

A call is admitted by the time it would wait, not by what the queue holds: taking turns, a call of k texts waits for
the batch that runs and for the first k texts of each waiting call (generalised processor sharing, Parekh and Gallager
1993). So behind a call of a hundred texts a single one waits for one. How long it may wait depends on the load. A burst
is waited out; but where calls are refused all the time, the queue is always full, makes everyone wait and serves few
more (compare Nichols and Jacobson, Controlling Queue Delay, 2012). Half the time must do then; and who has waited
for much longer all the same, on a machine that others slow down, makes room for those that came since.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from deployments.core.errors import DeadlineExceeded, IntentGraphError, Overloaded

C = TypeVar("C", bound=Hashable)
P = TypeVar("P")

LOOKAHEAD = 4
"""Batches' worth of items considered for one batch: enough to find near lengths, and sorted in microseconds."""
PASS_SHARE = 0.5
"""Most of `max_queue_s` that one pass should take: who comes just after it started waits for it to its end."""
OVERLOADED_FROM = 0.1
"""Share of refused calls beyond which the model is overloaded: above the few per cent that bursts make a busy model
refuse, and below what an ingress lets be refused under overload, one of six (`throttle`)."""
OVERLOADED_SHARE = 0.5
"""Part of `max_queue_s` that may be waited for while the model is overloaded. No less than `PASS_SHARE`: below it,
where passes are cut to that, only what fits into one batch would be taken."""
OVERDUE_TIMES = 1.5
"""What a newcomer may expect to wait, so many times, is too long under overload. Not once: estimates err, and who is
refused late has waited for nothing."""
WORTHWHILE_OVERHEADS = 8
WORTHWHILE_TOKENS = 128
"""A pass is never cut below so many times its overhead, nor below so many tokens: a ninth of the time would go into
it, and on a busy machine, where each pass takes longer, ever smaller batches would end all batching."""
RETRY_AFTER_RANGE_S = (0.1, 60.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch and the whole queue may cost, in tokens and in time.

    `max_queue_s` is the wait that a newcomer may expect, half of it under overload, `max_queue_tokens` the bound of
    memory. Both begin to hold when something waits. `pass_overhead_tokens` is the fixed cost of a forward pass, as the
    tokens that take as long; padding beyond it is dearer than a second pass. It is measured when the model is loaded:
    some ten with ONNX Runtime on a CPU, some thirty with torch, thousands on a GPU. So is `tokens_per_s`, overhead
    included, which is what the model is expected to serve until it has served a batch.
    """

    max_batch_tokens: int
    max_batch_size: int
    max_queue_tokens: int
    pass_overhead_tokens: int = 64
    max_queue_s: float = math.inf
    tokens_per_s: float = math.inf

    def __post_init__(self) -> None:
        counts = self.max_batch_tokens, self.max_batch_size, self.max_queue_tokens
        positive = min(counts) >= 1 and min(self.max_queue_s, self.tokens_per_s) > 0
        if not positive or self.pass_overhead_tokens < 0:
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
    """What waits of one call, by index, oldest first; and how much it brought."""

    deadline_s: float
    tickets: dict[int, Ticket[C, P]]
    texts: int
    tokens: int

    @property
    def oldest(self) -> Ticket[C, P]:
        return next(iter(self.tickets.values()))

    @property
    def is_untouched(self) -> bool:
        return len(self.tickets) == self.texts


class Scheduler(Generic[C, P]):
    """The bounded queue of one model and the order in which it is served. See the module for the rules."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rotation: OrderedDict[C, _Line[C, P]] = OrderedDict()
        self._texts = 0
        self._tokens = 0
        self._runs_until_s = -math.inf
        self._last_batch_s = -math.inf
        self._idle_since_s = math.inf  # where it is busy, or nobody knows
        self._drain = DrainRate(limits.tokens_per_s)
        self._refusals = RecentRefusals(limits.max_queue_s)

    def __len__(self) -> int:
        """Items waiting."""
        return self._texts

    def __bool__(self) -> bool:
        return bool(self._rotation)

    @property
    def tokens(self) -> int:
        """Tokens waiting."""
        return self._tokens

    def delay_s(self, now_s: float) -> float:
        """Expected time until the running batch and all that waits are served."""
        return self._remaining_s(now_s) + self._passes_s(self._texts, self._tokens)

    def wait_s(self, texts: int, now_s: float) -> float:
        """Expected time that a newcomer of so many texts waits for others."""
        return self._remaining_s(now_s) + self._passes_s(*self._ahead(texts))

    def require_room(self, tokens: int, now_s: float) -> None:
        """Refuse a call that would overfill the queue; one that finds it empty is taken whatever its length.

        Raises:
            Overloaded: (429) with the time in which what waits now will have been served.
        """
        if self._rotation and self._tokens + tokens > self._limits.max_queue_tokens:
            raise _overloaded(
                f"{self._tokens:,} tokens wait and this call brings {tokens:,} or more; the limit is "
                f"{self._limits.max_queue_tokens:,}",
                self.delay_s(now_s),
            )

    def admit(self, call: C, tickets: Sequence[Ticket[C, P]], *, now_s: float, deadline_s: float) -> None:
        """Queue all tickets of a call, or none.

        Raises:
            Overloaded: (429) see `require_room`; or the call would wait too long, with the time that it would wait.
        """
        if not tickets:
            return
        tokens = sum(ticket.tokens for ticket in tickets)
        self.require_room(tokens, now_s)
        self._refusals.forget_idle(now_s - self._idle_since_s)
        self._idle_since_s = math.inf
        refusal = self._refusal_of(len(tickets), tokens, now_s)
        self._refusals.observe(now_s, refused=refusal is not None)
        if refusal:
            raise refusal
        self._rotation[call] = _Line(deadline_s, {each.index: each for each in tickets}, len(tickets), tokens)
        self._texts += len(tickets)
        self._tokens += tokens

    def withdraw(self, call: C) -> list[Ticket[C, P]]:
        """Take out what still waits of a call, if anything."""
        line = self._rotation.get(call)
        return self._take(list(line.tickets.values())) if line else []

    def next_batch(self, now_s: float) -> tuple[list[Ticket[C, P]], list[tuple[Ticket[C, P], IntentGraphError]]]:
        """Take out the next batch, lead first, and beforehand whatever is not to be served any more.

        Returns:
            The batch (empty when nothing waits); and the others, each with what to tell its caller: `DeadlineExceeded`
            where the deadline has come, `Overloaded` (429) where it is overdue.
        """
        dropped = [*self._drop_expired(now_s), *self._drop_overdue(now_s)]
        if not self._rotation:
            return [], dropped
        batch = self._compose()
        self._last_batch_s, self._idle_since_s = now_s, math.inf
        self._end_turns(batch)
        self._runs_until_s = now_s + self._passes_s(1, sum(ticket.tokens for ticket in batch))
        return self._take(batch), dropped

    def served(self, tokens: int, *, busy_s: float) -> None:
        """Learn that the batch has ended and how long it took: `tokens` without padding, `busy_s` of worker's time."""
        self._runs_until_s = -math.inf
        self._idle_since_s = self._last_batch_s + busy_s
        self._drain.observe(tokens + self._limits.pass_overhead_tokens, busy_s)

    def _drop_expired(self, now_s: float) -> Iterator[tuple[Ticket[C, P], DeadlineExceeded]]:
        for call in [call for call, line in self._rotation.items() if line.deadline_s <= now_s]:
            for ticket in self.withdraw(call):
                yield ticket, late(now_s - ticket.arrived_s)

    def _drop_overdue(self, now_s: float) -> Iterator[tuple[Ticket[C, P], Overloaded]]:
        """Under overload, refuse calls that have waited for `OVERDUE_TIMES` as long as a newcomer of their size may.

        Of a call that nothing was served of, all; and of nobody whose place no other would take, for what fits into one
        batch is served with it.
        """
        if not self._is_overloaded(now_s):
            return
        for call, line in list(self._rotation.items()):
            if self._fits_one_batch(self._texts, self._tokens):
                return
            waited_s, limit_s = now_s - line.oldest.arrived_s, OVERDUE_TIMES * self._limit_s(line.tokens, now_s)
            if line.is_untouched and waited_s > limit_s:
                self._refusals.observe_late()
                refusal = _overloaded(
                    f"this call has waited for {waited_s:.2f} s; the limit is {limit_s:.2f}", self.delay_s(now_s)
                )
                yield from ((ticket, refusal) for ticket in self.withdraw(call))

    def _refusal_of(self, texts: int, tokens: int, now_s: float) -> Overloaded | None:
        """What to tell a call that would wait for others longer than it may and its own work takes, if it would.

        Its own work is allowed for because who brings a hundred texts does not expect the answer as soon as who brings
        one. The whole queue is looked at first: it takes no counting, and most of the time it is short enough.
        What fits into one batch with all that goes before it, padding aside, is never refused: its turn comes soon, and
        after a pass that a busy machine held up the estimate would turn away the handful behind it.
        """
        limit_s = self._limit_s(tokens, now_s)
        if not self._rotation or self.delay_s(now_s) <= limit_s:
            return None
        texts_ahead, tokens_ahead = self._ahead(texts)
        if self._fits_one_batch(texts_ahead + texts, tokens_ahead + tokens):
            return None
        wait_s = self._remaining_s(now_s) + self._passes_s(texts_ahead, tokens_ahead)
        if wait_s <= limit_s:
            return None
        return _overloaded(f"this call would wait for {wait_s:.2f} s; the limit is {limit_s:.2f}", wait_s)

    def _ahead(self, texts: int) -> tuple[int, int]:
        """How many texts and tokens go before the last text of a newcomer that brings so many."""
        ahead = [each.tokens for line in self._rotation.values() for each in islice(line.tickets.values(), texts)]
        return len(ahead), sum(ahead)

    def _limit_s(self, tokens: int, now_s: float) -> float:
        """How long a call may wait: its own work's time, and all of `max_queue_s`, or a part of it under overload."""
        share = OVERLOADED_SHARE if self._is_overloaded(now_s) else 1
        return self._limits.max_queue_s * share + self._drain.time_s(tokens)

    def _is_overloaded(self, now_s: float) -> bool:
        return self._refusals.share(now_s) > OVERLOADED_FROM

    def _fits_one_batch(self, texts: int, tokens: int) -> bool:
        """Padding aside."""
        return texts <= self._limits.max_batch_size and tokens <= self._budget

    def _remaining_s(self, now_s: float) -> float:
        """Expected time until the running batch ends."""
        return max(0.0, self._runs_until_s - now_s)

    def _passes_s(self, texts: int, tokens: int) -> float:
        """Expected time of serving so much in as few passes as the budgets allow."""
        passes = max(math.ceil(texts / self._limits.max_batch_size), math.ceil(tokens / self._budget))
        return self._drain.time_s(tokens + passes * self._limits.pass_overhead_tokens)

    @property
    def _budget(self) -> float:
        """Padded tokens of a batch: what is served in a newcomer's time, as far as that is worth a pass."""
        overhead = self._limits.pass_overhead_tokens
        in_time = self._drain.tokens_in(self._limits.max_queue_s * PASS_SHARE) - overhead
        worthwhile = max(WORTHWHILE_OVERHEADS * overhead, WORTHWHILE_TOKENS)
        return min(self._limits.max_batch_tokens, max(in_time, worthwhile))

    def _compose(self) -> list[Ticket[C, P]]:
        """Choose a batch: the lead, then its neighbours in length while they fit."""
        lead, *others = islice(self._in_turn(), LOOKAHEAD * self._limits.max_batch_size)
        # Stable: equals stay in turn.
        others.sort(key=lambda ticket: (not self._was_passed_over(ticket), abs(ticket.tokens - lead.tokens)))
        batch, longest, useful, budget = [lead], lead.tokens, lead.tokens, self._budget
        for ticket in others:
            if len(batch) == self._limits.max_batch_size:
                break
            padded = max(longest, ticket.tokens) * (len(batch) + 1)
            padding = padded - useful - ticket.tokens
            if padded <= budget and padding <= self._limits.pass_overhead_tokens:
                batch.append(ticket)
                longest, useful = max(longest, ticket.tokens), useful + ticket.tokens
        return batch

    def _was_passed_over(self, ticket: Ticket[C, P]) -> bool:
        """Whether, its call's oldest, it came before the last batch: an odd length is to cost one pass, not three."""
        return ticket.arrived_s <= self._last_batch_s and self._rotation[ticket.call].oldest is ticket

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

    def _end_turns(self, batch: list[Ticket[C, P]]) -> None:
        """Put the calls that had their turn at the back; one whose oldest item is too far in length keeps its place."""
        had_turn = {ticket.call for ticket in batch if self._rotation[ticket.call].oldest is ticket}
        for ticket in batch:
            if ticket.call in had_turn:
                self._rotation.move_to_end(ticket.call)

    def _take(self, tickets: list[Ticket[C, P]]) -> list[Ticket[C, P]]:
        """Take tickets out; a call of which nothing waits leaves the rotation."""
        for ticket in tickets:
            waiting = self._rotation[ticket.call].tickets
            del waiting[ticket.index]
            if not waiting:
                del self._rotation[ticket.call]
            self._tokens -= ticket.tokens
        self._texts -= len(tickets)
        return tickets


class DrainRate:
    """Tokens served in a second of work: a ratio of two sums in which a batch weighs `MEMORY` of the one after it.

    Tokens are those of the texts and the overhead of each pass, so that small batches tell what large ones will take.
    Before the first batch it is what is expected: a replica that starts under load is sent all that others refuse.
    """

    MEMORY = 0.9

    def __init__(self, expected_per_s: float) -> None:
        self._expected_per_s = expected_per_s
        self._tokens = 0.0
        self._busy_s = 0.0

    def observe(self, tokens: int, busy_s: float) -> None:
        """Count one batch."""
        self._tokens = self.MEMORY * self._tokens + tokens
        self._busy_s = self.MEMORY * self._busy_s + busy_s

    def time_s(self, tokens: int) -> float:
        """Time that serving so many tokens takes."""
        return tokens / self._per_s

    def tokens_in(self, time_s: float) -> float:
        """Tokens served in a time."""
        return time_s * self._per_s

    @property
    def _per_s(self) -> float:
        return self._tokens / self._busy_s if self._busy_s else self._expected_per_s


class RecentRefusals:
    """The share of calls refused for their wait among the recent, each of which counts as one whatever it brings.

    Of an older call 1/e is left after every `MEMORY_WAITS` · `max_queue_s`; and after every `IDLE_WAITS` ·
    `max_queue_s` in which the model is idle, for then it was only a burst.
    """

    MEMORY_WAITS = 10
    """Long enough to count hundreds of calls on one core, so that the load decides and not the last batch."""
    IDLE_WAITS = 0.5
    """Short, so that bursts with pauses between them are each waited out; the pauses of an overload are shorter yet."""
    BEFORE = 20
    """So many more count as accepted, always: two refusals are chance, and few calls make no overload."""

    def __init__(self, max_queue_s: float) -> None:
        self._max_queue_s = max_queue_s
        self._calls = self._refused = self._at_s = 0.0

    def observe(self, now_s: float, *, refused: bool) -> None:
        """Count one call."""
        self._age(now_s)
        self._calls += 1
        self._refused += refused

    def observe_late(self) -> None:
        """Learn that a call that was counted as accepted has been refused after all."""
        self._refused += 1

    def forget_idle(self, idle_s: float) -> None:
        """Learn that the model was idle for so long; negative where it was not."""
        self._forget(max(0.0, idle_s) / self.IDLE_WAITS)

    def share(self, now_s: float) -> float:
        """The share of refused, 0 to 1."""
        self._age(now_s)
        return self._refused / (self._calls + self.BEFORE)

    def _age(self, now_s: float) -> None:
        self._forget((now_s - self._at_s) / self.MEMORY_WAITS)
        self._at_s = now_s

    def _forget(self, time_s: float) -> None:
        left = math.exp(-time_s / self._max_queue_s)
        self._calls *= left
        self._refused *= left


def late(after_s: float) -> DeadlineExceeded:
    """What to tell a caller who got no answer in its time."""
    return DeadlineExceeded(f"no answer within {after_s:.3g} s")


def _overloaded(reason: str, retry_after_s: float) -> Overloaded:
    shortest_s, longest_s = RETRY_AFTER_RANGE_S
    retry_after_s = min(max(retry_after_s, shortest_s), longest_s)
    return Overloaded(f"{reason}; retry in {retry_after_s:.1f} s", retry_after_s=retry_after_s)
