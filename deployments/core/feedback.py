"""The life of a feedback record, without HTTP and without Ray.

    record ── labels known? ── applied, or waiting for approval ── on disk ── receipt

`FeedbackService` decides; the log it asks is behind the protocol `Log`, which the ingress implements with a handle to
the feedback deployment and unit tests with a few lines.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from deployments.core import metrics
from deployments.core.access import LOCAL, Caller
from deployments.core.artifact import Artifact
from deployments.core.contract import (
    AckRequest,
    AckResponse,
    Agreed,
    ConfusionOverTime,
    ContestedText,
    CorrectedPair,
    EraseRequest,
    EraseResponse,
    FallingIntent,
    FeedbackPage,
    FeedbackRecord,
    FeedbackResponse,
    FeedbackTypes,
    PatternsResponse,
    ReviewResponse,
    StatsResponse,
    StoredFeedback,
)
from deployments.core.errors import DeadlineExceeded, IntentGraphError
from deployments.core.feedback_counts import Agreement, LogStats, Tally, by
from deployments.core.feedback_log import Receipt, State, Submission, Verdict
from deployments.core.feedback_patterns import Contest, confusions, falling, wilson_interval
from deployments.core.feedback_reader import Page
from deployments.core.log_layout import DAY_S
from deployments.core.settings import Settings
from deployments.core.text import correction_key

MAX_CONTESTED = 50


class Log(Protocol):
    """What the service needs of the feedback log. Every call is bounded in time by whoever implements it."""

    async def append(self, submission: Submission) -> Receipt | IntentGraphError:
        """Have a record written; a receipt means it is on disk."""

    async def stats(self) -> LogStats:
        """Counts over the retained log."""

    async def page(self, after: str, limit: int, state: str | None) -> Page:
        """Records in the order of the log."""

    async def review(self, feedback_id: str, verdict: Verdict, by: str) -> None:
        """Decide about a correction that waits."""

    async def delete(self, feedback_id: str, by: str) -> None:
        """Remove a record."""

    async def erase(self, user_id: str, by: str) -> int:
        """Remove a user's records; give how many."""

    async def acknowledge(self, feedback_id: str) -> None:
        """Move the training cursor."""

    async def patterns(self, limit: int) -> tuple[list[Tally], list[tuple[Contest, str]], float]:
        """The counters, up to `limit` contested texts, and the log's time in seconds since 1970."""


class FeedbackService:
    """Takes what people say of the answers, and shows it to those who operate the service."""

    def __init__(self, settings: Settings, artifact: Artifact, log: Log, recorder: metrics.Metrics) -> None:
        self._settings = settings
        self._artifact = artifact
        self._log = log
        self._metrics = recorder

    async def submit(
        self, record: FeedbackRecord, idempotency_key: str | None = None, caller: Caller = LOCAL
    ) -> FeedbackResponse:
        """Have a feedback record written to disk; the same key and record of a caller again is the same receipt.

        A correction is applied if the caller may correct; else it waits until somebody who may approves it.

        Raises:
            InvalidInput: an unknown label (422).
            KeyConflict: the key was used with another record (422).
            Gone: the record that was sent with this key is deleted (410).
            Overloaded: too many records of this caller (429).
            Unavailable: the log's store is away (503); retry with the same key.
        """
        try:
            record.check_labels(self._artifact)
            async with self._in_time():
                receipt = await self._append(record, idempotency_key, caller)
        except Exception as error:
            self.refuse(record.feedback_type, error)
            raise
        self._count(record, receipt)
        return self._response(receipt)

    async def _append(self, record: FeedbackRecord, idempotency_key: str | None, caller: Caller) -> Receipt:
        submission = Submission(
            record=record.model_dump(mode="json", exclude_none=True),
            text_key=correction_key(record.text),
            state=_state(record, caller),
            idempotency_key=idempotency_key or uuid.uuid4().hex,
            model_version=self._artifact.version,
            trusted=caller.may("correct"),
            by=caller.name,
        )
        receipt = await self._log.append(submission)
        if isinstance(receipt, IntentGraphError):
            raise receipt
        # Under a key drawn here, a duplicate is this very submission, sent again when a replica died.
        return receipt if idempotency_key else replace(receipt, duplicate=False)

    def refuse(self, feedback_type: str, error: Exception) -> None:
        """Count a feedback record that was not taken."""
        is_callers = isinstance(error, IntentGraphError) and error.status < 500  # noqa: PLR2004 - HTTP's own border
        status = "rejected" if is_callers else "unavailable"
        self._metrics.record(metrics.FEEDBACK_SUBMISSIONS, feedback_type=feedback_type, status=status)

    def _count(self, record: FeedbackRecord, receipt: Receipt) -> None:
        status = "duplicate" if receipt.duplicate else "recorded"
        self._metrics.record(metrics.FEEDBACK_SUBMISSIONS, feedback_type=record.feedback_type, status=status)
        if record.feedback_type == "correction" and not receipt.duplicate:
            self._metrics.record(
                metrics.FEEDBACK_CORRECTIONS,
                original_intent=record.original_intent,
                correct_intent=record.correct_intent,
            )

    def _response(self, receipt: Receipt) -> FeedbackResponse:
        served = receipt.applied and self._settings.enable_caching
        if receipt.duplicate:
            message = "This record was written before; nothing was counted again."
        elif receipt.state == "recorded":
            message = "Recorded."
        elif receipt.state == "pending":
            message = "Recorded. The correction changes answers once somebody with the scope `admin` approves it."
        elif served:
            message = "Recorded. The correction is served from now on."
        else:
            message = "Recorded. The correction is not served while caching is off."
        return FeedbackResponse(
            feedback_id=receipt.feedback_id,
            status="duplicate" if receipt.duplicate else "recorded",
            cache_updated=served,
            message=message,
        )

    async def stats(self) -> StatsResponse:
        """Counts over the retained log. Raises `Unavailable`: the log's store is away (503)."""
        async with self._in_time():
            stats = await self._log.stats()
        return StatsResponse(
            total=stats.agreement.total,
            feedback_types=_types(stats.agreement),
            total_pending_feedback=stats.untrained,
            agreement_rate=stats.agreement.rate,
            corrections=tuple(
                CorrectedPair(original_intent=original, correct_intent=correct, count=count)
                for original, correct, count in stats.pairs
            ),
            by_intent={intent: _types(agreed) for intent, agreed in stats.by_intent.items()},
            cache_enabled=self._settings.enable_caching,
            cache_ttl_hours=self._settings.cache_ttl / 3600,
            model_version=self._artifact.version,
        )

    async def page(self, after: str, limit: int, state: str | None) -> FeedbackPage:
        """Records in the order of the log, after a cursor.

        Raises `InvalidInput` for what is no cursor (422), `Unavailable` (503).
        """
        async with self._in_time():
            page = await self._log.page(after, limit, state)
        return FeedbackPage(
            items=tuple(StoredFeedback.model_validate(each.to_json()) for each in page.records), next=page.next
        )

    async def review(self, feedback_id: str, verdict: Verdict, caller: Caller = LOCAL) -> ReviewResponse:
        """Decide about a correction that waits; an approved one is served from now on, for its whole life.

        Raises `NotFound` (404), `Conflict`: it does not wait (409), `Unavailable` (503); it may be asked again.
        """
        async with self._in_time():
            await self._log.review(feedback_id, verdict, caller.name)
        return ReviewResponse(feedback_id=feedback_id, state=verdict)

    async def delete(self, feedback_id: str, caller: Caller = LOCAL) -> None:
        """Remove a record; if it corrected a text, the newest correction that remains holds.

        Raises `NotFound` (404), `Unavailable` (503).
        """
        async with self._in_time():
            await self._log.delete(feedback_id, caller.name)

    async def erase(self, request: EraseRequest, caller: Caller = LOCAL) -> EraseResponse:
        """Remove all records of a user. Raises `Unavailable` (503): perhaps not all of them, ask again."""
        async with self._in_time():
            return EraseResponse(deleted=await self._log.erase(request.user_id, caller.name))

    async def acknowledge(self, request: AckRequest) -> AckResponse:
        """Move the training cursor: what came up to that record was trained on.

        Raises `InvalidInput` (422), `NotFound`: the log has not come to it (404), `Unavailable` (503).
        """
        async with self._in_time():
            await self._log.acknowledge(request.feedback_id)
            stats = await self._log.stats()
        return AckResponse(total_pending_feedback=stats.untrained)

    async def patterns(self, days: int) -> PatternsResponse:
        """What is confused, what gets worse and what is contested: of the last `days` days. Raises `Unavailable`."""
        async with self._in_time():
            tallies, contests, now_s = await self._log.patterns(MAX_CONTESTED)
        today = int(now_s // DAY_S)
        return PatternsResponse(
            days=days,
            confusions=tuple(
                ConfusionOverTime(
                    original_intent=each.original_intent,
                    correct_intent=each.correct_intent,
                    count=each.count,
                    count_before=each.count_before,
                    by_day={_date(day): count for day, count in each.by_day.items()},
                )
                for each in confusions(tallies, today=today, days=days)
            ),
            falling=tuple(
                FallingIntent(
                    intent=each.intent,
                    now=_agreed(each.now),
                    before=_agreed(each.before),
                    difference_interval=each.interval,
                )
                for each in falling(tallies, today=today, days=days)
            ),
            contested=tuple(
                ContestedText(
                    text=text,
                    turns=contest.turns,
                    intents=contest.intents,
                    last_feedback_id=contest.last_feedback_id,
                )
                for contest, text in contests
            ),
            by_model_version={version: _agreed(agreed) for version, agreed in by(tallies, "model_version").items()},
        )

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"not done within {limit_s:g} s; it may be asked again") from error


def _state(record: FeedbackRecord, caller: Caller) -> State:
    if record.feedback_type == "confirmation":
        return "recorded"
    return "applied" if caller.may("correct") else "pending"


def _types(agreed: Agreement) -> FeedbackTypes:
    return FeedbackTypes(corrections=agreed.corrections, confirmations=agreed.confirmations)


def _agreed(agreed: Agreement) -> Agreed:
    return Agreed(
        corrections=agreed.corrections,
        confirmations=agreed.confirmations,
        agreement_rate=agreed.rate,
        interval=wilson_interval(agreed),
    )


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat()
