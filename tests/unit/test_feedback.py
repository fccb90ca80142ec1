"""The life of a feedback record, with a log of a few lines."""

import pytest

from deployments.core import metrics
from deployments.core.access import Caller
from deployments.core.contract import AckRequest, EraseRequest, FeedbackRecord
from deployments.core.errors import Conflict, DeadlineExceeded, Gone, InvalidInput, Overloaded, Unavailable
from deployments.core.feedback import FeedbackService
from deployments.core.feedback_counts import Agreement, LogStats, Tally
from deployments.core.feedback_log import Receipt
from deployments.core.feedback_patterns import Contest
from deployments.core.settings import Settings
from deployments.core.text import correction_key
from tests.unit.fakes import CountingMetrics, FakeLog, artifact

RECORD = FeedbackRecord(text="a", original_intent="reasoning", correct_intent="translation", original_confidence=0.5)
CONFIRMATION = RECORD.model_copy(update={"correct_intent": "reasoning", "feedback_type": "confirmation"})
STRANGER = Caller("stranger", frozenset({"feedback"}))
OPERATOR = Caller("operator", frozenset({"admin"}))


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


@pytest.fixture
def service(log: FakeLog, counted: CountingMetrics) -> FeedbackService:
    return FeedbackService(Settings(), artifact(), log, counted)


async def test_an_accepted_correction_says_that_it_is_served(
    service: FeedbackService, log: FakeLog, counted: CountingMetrics
):
    """The record goes to the log with the correction's key and a key for its retry."""
    response = await service.submit(RECORD)

    assert (response.status, response.cache_updated, response.feedback_id) == ("recorded", True, "1-0")
    assert log.submissions[0].text_key == correction_key("a")
    assert log.submissions[0].state == "applied"
    assert log.submissions[0].idempotency_key
    assert counted.total(metrics.FEEDBACK_CORRECTIONS, original_intent="reasoning", correct_intent="translation") == 1


async def test_a_duplicate_is_not_counted_as_another_correction(
    service: FeedbackService, log: FakeLog, counted: CountingMetrics
):
    """A retry is free."""
    log.receipt = Receipt("1-0", duplicate=True, state="applied")
    response = await service.submit(RECORD, "key")

    assert response.status == "duplicate"
    assert counted.total(metrics.FEEDBACK_SUBMISSIONS, feedback_type="correction", status="duplicate") == 1
    assert counted.total(metrics.FEEDBACK_CORRECTIONS, original_intent="reasoning", correct_intent="translation") == 0


@pytest.mark.parametrize(
    ("settings", "state"),
    [({}, "applied"), ({"auth": "open"}, "pending"), ({"auth": "open", "apply_untrusted": True}, "applied")],
)
async def test_a_stranger_changes_nobodys_answers(log: FakeLog, settings: dict[str, object], state: str):
    """Open to other hosts without keys, corrections wait for approval, unless a setting says otherwise."""
    given = Settings(**settings)
    service = FeedbackService(given, artifact(), log, CountingMetrics())
    await service.submit(RECORD, caller=given.keyless_caller)

    assert log.submissions[0].state == state
    assert log.submissions[0].trusted is (state == "applied")


async def test_unknown_labels_are_refused_with_the_known_ones(service: FeedbackService, counted: CountingMetrics):
    """The message is the remedy."""
    record = RECORD.model_copy(update={"correct_intent": "poetry"})

    with pytest.raises(InvalidInput, match=r"'poetry'; known: reasoning, translation"):
        await service.submit(record)
    assert counted.total(metrics.FEEDBACK_SUBMISSIONS, feedback_type="correction", status="rejected") == 1


async def test_a_log_that_is_away_is_said_so(service: FeedbackService, log: FakeLog, counted: CountingMetrics):
    """Nothing is acknowledged."""
    log.receipt = Unavailable("away")

    with pytest.raises(Unavailable):
        await service.submit(RECORD)
    assert counted.total(metrics.FEEDBACK_SUBMISSIONS, feedback_type="correction", status="unavailable") == 1


async def test_agreement_is_confirmations_over_all(service: FeedbackService, log: FakeLog):
    """And unknown while there are none."""
    assert (await service.stats()).agreement_rate is None
    log.counts = LogStats(Agreement(3, 1), [("reasoning", "translation", 3)], {"reasoning": Agreement(3, 1)}, 4)

    assert (await service.stats()).agreement_rate == 0.25


async def test_with_caching_off_a_receipt_does_not_promise_what_is_not_served(log: FakeLog):
    """`cache_updated` says what callers will see."""
    service = FeedbackService(Settings(enable_caching=False), artifact(), log, CountingMetrics())
    response = await service.submit(RECORD)

    assert not response.cache_updated
    assert "not served while caching is off" in response.message


async def test_a_retry_under_a_key_drawn_here_is_the_first_submission(
    service: FeedbackService, log: FakeLog, counted: CountingMetrics
):
    """The caller sent one record and must not be told of a duplicate."""
    log.receipt = Receipt("1-0", duplicate=True, state="applied")
    response = await service.submit(RECORD)

    assert response.status == "recorded"
    assert counted.total(metrics.FEEDBACK_CORRECTIONS, original_intent="reasoning", correct_intent="translation") == 1


async def test_a_record_goes_to_the_log_with_its_caller_and_the_model_in_service(
    service: FeedbackService, log: FakeLog
):
    """Keys of different callers never meet, and agreement is counted by model version."""
    await service.submit(RECORD, "key", STRANGER)
    await service.submit(CONFIRMATION, "key", STRANGER)
    await service.submit(RECORD, "key", OPERATOR)

    assert [(each.by, each.state, each.trusted, each.model_version) for each in log.submissions] == [
        ("stranger", "pending", False, "v1"),
        ("stranger", "recorded", False, "v1"),
        ("operator", "applied", True, "v1"),
    ]


async def test_a_correction_that_waits_does_not_promise_to_be_served(service: FeedbackService, log: FakeLog):
    """`cache_updated` says what callers will see."""
    log.receipt = Receipt("1-0", duplicate=False, state="pending")
    response = await service.submit(RECORD, caller=STRANGER)

    assert not response.cache_updated
    assert "approves it" in response.message


@pytest.mark.parametrize(
    ("error", "status"),
    [(Gone("deleted"), "rejected"), (Overloaded("too many"), "rejected"), (DeadlineExceeded("late"), "unavailable")],
)
async def test_what_is_not_taken_is_counted_by_whose_fault_it_is(
    service: FeedbackService, log: FakeLog, counted: CountingMetrics, error: Exception, status: str
):
    """The caller's, or the service's."""
    log.receipt = error

    with pytest.raises(type(error)):
        await service.submit(RECORD)
    assert counted.total(metrics.FEEDBACK_SUBMISSIONS, feedback_type="correction", status=status) == 1


async def test_what_an_operator_does_is_done_in_their_name(service: FeedbackService, log: FakeLog):
    """The log says who."""
    reviewed = await service.review("1-0", "approved", OPERATOR)
    await service.delete("2-0", OPERATOR)
    erased = await service.erase(EraseRequest(user_id="u"), OPERATOR)
    log.counts = LogStats(Agreement(3, 1), [], {}, 2)
    acknowledged = await service.acknowledge(AckRequest(feedback_id="3-0"))

    assert log.asked == [
        ("review", "1-0", "approved", "operator"),
        ("delete", "2-0", "operator"),
        ("erase", "u", "operator"),
        ("acknowledge", "3-0"),
    ]
    assert (reviewed.state, erased.deleted, acknowledged.total_pending_feedback) == ("approved", 3, 2)


async def test_what_the_log_refuses_is_refused(service: FeedbackService, log: FakeLog):
    """Its words are for the caller."""
    log.error = Conflict("feedback 1-0 is rejected already")

    with pytest.raises(Conflict, match="already"):
        await service.review("1-0", "approved")


async def test_patterns_show_what_is_confused_falls_and_is_contested(service: FeedbackService, log: FakeLog):
    """Of the last seven days on the log's clock, which stands on the 20,000th day since 1970."""

    def tally(day: int, correct: str, count: int, version: str = "v1") -> Tally:
        kind = "confirmation" if correct == "reasoning" else "correction"
        return Tally(day, kind, "reasoning", correct, version, count)

    log.tallies = [
        tally(19_980, "reasoning", 90, "v0"),
        tally(19_980, "translation", 10, "v0"),
        tally(19_990, "translation", 2),
        tally(19_994, "translation", 30),
        tally(20_000, "translation", 10),
        tally(20_000, "reasoning", 60),
    ]
    log.contests = [(Contest("2-0", "translation", 1, ("reasoning", "translation")), "is it?")]
    patterns = await service.patterns(7)

    [confusion] = patterns.confusions
    [fallen] = patterns.falling
    [contest] = patterns.contested
    assert (confusion.count, confusion.count_before) == (40, 2)
    assert confusion.by_day == {"2024-09-28": 30, "2024-10-04": 10}
    assert (fallen.intent, fallen.now.agreement_rate, fallen.before.agreement_rate) == ("reasoning", 0.6, 90 / 102)
    assert fallen.difference_interval[0] < 0.6 - 90 / 102 < fallen.difference_interval[1] < 0
    assert (contest.text, contest.turns, contest.last_feedback_id) == ("is it?", 1, "2-0")
    assert {version: agreed.agreement_rate for version, agreed in patterns.by_model_version.items()} == {
        "v0": 0.9,
        "v1": 60 / 102,
    }
