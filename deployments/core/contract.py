"""The service's contract as pydantic models: what each call takes and gives.

The ingress validates with these, `/openapi.json` is made from them, and Python handles use the same ones. Unknown
fields are ignored. Which labels exist depends on the model's artifact, so `check_labels` compares them with it.
"""

import re
import unicodedata
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from deployments.core.artifact import Artifact
from deployments.core.errors import InvalidInput
from deployments.core.log_layout import FeedbackState

MAX_TEXT = 5000
MAX_BATCH = 100
MAX_PURGE = 1000
MAX_WARM = 1000
MAX_WARM_BODY_BYTES = 8 * 1024 * 1024
"""So much more than `max_body_bytes` that a thousand texts of 2,000 characters of any script fit."""
MAX_USER_ID = 128
MAX_FEEDBACK_PAGE = 1000
MAX_PATTERN_DAYS = 365
MAX_TECHNIQUES = 16
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of controls, formats (zero-width space among them) and separators."""


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains the character NUL (U+0000); remove it")
    if _LONE_SURROGATE.search(value):
        raise ValueError("contains a lone surrogate, which is no Unicode text; send well-formed UTF-8")
    return value


def _not_blank(value: str) -> str:
    if all(unicodedata.category(character) in INVISIBLE for character in value):
        raise ValueError("is blank; send at least one visible character")
    return value


Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TEXT),
    AfterValidator(_storable),
    AfterValidator(_not_blank),
    Field(description=f"1 to {MAX_TEXT} code points.", examples=["Write a haiku about autumn"]),
]
UserId = Annotated[str, StringConstraints(max_length=MAX_USER_ID), AfterValidator(_storable)]
Label = Annotated[str, StringConstraints(max_length=64), AfterValidator(_storable)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClassifyRequest(_Request):
    """One text to classify."""

    text: Text
    user_id: UserId | None = None


class BatchRequest(_Request):
    """Several texts to classify; the answers come in their order."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)]
    user_id: UserId | None = None


class FeedbackRecord(_Request):
    """What a person or a program found of an answer: wrong (`correction`) or right (`confirmation`)."""

    text: Text
    original_intent: Annotated[Label, Field(description="The intent the service answered.")]
    correct_intent: Annotated[Label, Field(description="The intent that was meant.")]
    original_confidence: Annotated[Share, Field(description="The confidence the service answered.")]
    correct_complexity: Label | None = None
    correct_techniques: Annotated[tuple[Label, ...], Field(max_length=MAX_TECHNIQUES, fail_fast=True)] | None = None
    user_id: UserId | None = None
    feedback_type: Literal["correction", "confirmation"] = "correction"
    timestamp: Annotated[datetime | None, Field(description="ISO 8601; when the person said so.")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        same_intent = self.original_intent == self.correct_intent
        if self.feedback_type == "confirmation":
            if not same_intent:
                raise ValueError("a confirmation has equal intents; send a correction to change the intent")
            if self.correct_complexity is not None or self.correct_techniques is not None:
                raise ValueError("a confirmation changes nothing; send a correction to change complexity or techniques")
        elif same_intent and self.correct_complexity is None and self.correct_techniques is None:
            raise ValueError("a correction with equal intents must give correct_complexity or correct_techniques")
        return self

    def check_labels(self, artifact: Artifact) -> None:
        """Refuse labels the artifact does not know.

        Raises:
            InvalidInput: names each unknown label and lists the known ones.
        """
        complexity = () if self.correct_complexity is None else (self.correct_complexity,)
        given: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
            ("original_intent", (self.original_intent,), artifact.answer_names),
            ("correct_intent", (self.correct_intent,), artifact.answer_names),
            ("correct_complexity", complexity, artifact.complexity_levels),
            ("correct_techniques", self.correct_techniques or (), artifact.technique_names),
        )
        errors: list[dict[str, object]] = [
            {"loc": ["body", field], "msg": f"unknown label {label!r}; known: {', '.join(known)}"}
            for field, labels, known in given
            for label in labels
            if label not in known
        ]
        if errors:
            raise InvalidInput(f"{errors[0]['loc'][1]}: {errors[0]['msg']}", errors=errors)  # type: ignore[index]


class PurgeRequest(_Request):
    """Which predictions to delete: `texts`, or `"all": true`."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_PURGE, fail_fast=True)] | None = None
    all: bool = False

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if self.all == (self.texts is not None):
            raise ValueError('send either "texts" or "all": true')
        return self


class WarmRequest(_Request):
    """Texts to compute before they are asked for."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_WARM, fail_fast=True)]


class EraseRequest(_Request):
    """Whose feedback to delete."""

    user_id: Annotated[UserId, Field(min_length=1)]


class AckRequest(_Request):
    """The last record that was trained on; `0-0` is none."""

    feedback_id: Annotated[str, StringConstraints(max_length=64), AfterValidator(_storable)]


class Metadata(BaseModel):
    """Where a classification comes from and how much of the text it saw."""

    model_version: str
    source: Literal["model", "correction"]
    tokens: Annotated[int, Field(description="The text's tokens before truncation.")]
    truncated: bool


class Classification(BaseModel):
    """The answer for one text. It depends only on the text, the model version, its correction and `scores=true`."""

    intent: str
    confidence: Share
    complexity: str
    suggested_techniques: tuple[str, ...]
    metadata: Metadata
    scores: Annotated[
        dict[str, Share] | None, Field(description="With `?scores=true`, never on a correction; they sum to 1.")
    ] = None


class BatchResponse(BaseModel):
    """The answers for a batch, in the order of its texts."""

    results: tuple[Classification, ...]
    count: int


class IntentInfo(BaseModel):
    """One intent of the model in service."""

    name: str
    description: str
    techniques: Annotated[dict[str, tuple[str, ...]], Field(description="Suggested techniques by complexity.")]


class TypesResponse(BaseModel):
    """The labels of the model in service."""

    intents: tuple[IntentInfo, ...]
    complexity_levels: tuple[str, ...]
    techniques: tuple[str, ...]
    model_version: str

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """The labels an artifact declares."""
        return cls(
            intents=tuple(
                IntentInfo(name=intent.name, description=intent.description, techniques=dict(intent.techniques))
                for intent in artifact.answers
            ),
            complexity_levels=artifact.complexity_levels,
            techniques=artifact.technique_names,
            model_version=artifact.version,
        )


class FeedbackResponse(BaseModel):
    """The receipt of a feedback record: it is on disk."""

    feedback_id: str
    status: Literal["recorded", "duplicate"]
    cache_updated: Annotated[bool, Field(description="Whether this record changes what the service answers.")]
    message: str


class FeedbackTypes(BaseModel):
    """How many records of each type."""

    corrections: int
    confirmations: int


class CorrectedPair(BaseModel):
    """How often one intent was corrected to another."""

    original_intent: str
    correct_intent: str
    count: int


class StatsResponse(BaseModel):
    """Counts over the retained log."""

    total: int
    feedback_types: FeedbackTypes
    total_pending_feedback: Annotated[int, Field(description="Records after the training cursor.")]
    agreement_rate: Annotated[float | None, Field(description="Confirmations / total; null when there are none.")]
    corrections: tuple[CorrectedPair, ...]
    by_intent: Annotated[dict[str, FeedbackTypes], Field(description="By the intent the service answered.")]
    cache_enabled: bool
    cache_ttl_hours: float
    model_version: str


class FeedbackPage(BaseModel):
    """Records in the order of the log."""

    items: tuple["StoredFeedback", ...]
    next: Annotated[str | None, Field(description="The cursor to go on from; null at the end of the log.")]


class StoredFeedback(BaseModel):
    """A feedback record with what is known of it."""

    feedback_id: str
    accepted_at: Annotated[str, Field(description="When the log took it.", json_schema_extra={"format": "date-time"})]
    state: Annotated[FeedbackState, Field(description="Of a correction; a confirmation is `recorded`.")]
    trusted: Annotated[bool, Field(description="Whether its caller might correct answers.")]
    by: Annotated[str, Field(description="The name of its caller's API key; empty without keys.")]
    model_version: Annotated[str, Field(description="The model in service when it was accepted.")]
    text: str
    original_intent: str
    correct_intent: str
    original_confidence: Share
    correct_complexity: str | None = None
    correct_techniques: tuple[str, ...] | None = None
    user_id: str | None = None
    feedback_type: Literal["correction", "confirmation"]
    timestamp: Annotated[str | None, Field(json_schema_extra={"format": "date-time"})] = None


class ReviewResponse(BaseModel):
    """What became of a correction that waited."""

    feedback_id: str
    state: Literal["approved", "rejected"]


class EraseResponse(BaseModel):
    """How many records were deleted."""

    deleted: int


class AckResponse(BaseModel):
    """How many records are after the training cursor now."""

    total_pending_feedback: int


class Agreed(FeedbackTypes):
    """How often answers were confirmed."""

    agreement_rate: Annotated[float | None, Field(description="Confirmations / total; null when there are none.")]
    interval: Annotated[tuple[Share, Share], Field(description="Of that rate, at a confidence of 95 % (Wilson).")]


class ConfusionOverTime(CorrectedPair):
    """How often one intent was corrected to another in the days asked for."""

    count_before: Annotated[int, Field(description="In as many days before those.")]
    by_day: Annotated[dict[str, int], Field(description="By date, UTC; days without any are left out.")]


class FallingIntent(BaseModel):
    """An intent whose agreement is below that of the retained days before, and not by chance."""

    intent: str
    now: Agreed
    before: Agreed
    difference_interval: Annotated[
        tuple[float, float], Field(description="Of now minus before, at a confidence of 95 % (Newcombe).")
    ]


class ContestedText(BaseModel):
    """A text that was corrected back and forth."""

    text: str
    turns: Annotated[int, Field(description="Corrections that named another intent than the one before them.")]
    intents: tuple[str, ...]
    last_feedback_id: str


class PatternsResponse(BaseModel):
    """What the feedback says beyond its sums."""

    days: int
    confusions: tuple[ConfusionOverTime, ...]
    falling: tuple[FallingIntent, ...]
    contested: Annotated[tuple[ContestedText, ...], Field(description="Over the retained log, the most turns first.")]
    by_model_version: dict[str, Agreed]


class PurgeResponse(BaseModel):
    """How many predictions were deleted."""

    deleted: int


class WarmResponse(BaseModel):
    """What became of the texts. Texts that the model cannot tell apart are one: the sum may be under `requested`."""

    requested: Annotated[int, Field(description="Texts sent, as they were sent.")]
    already_cached: Annotated[int, Field(description="Texts whose prediction the store had.")]
    computed: Annotated[int, Field(description="Texts whose prediction was computed; the store has it now.")]


class HealthResponse(BaseModel):
    """Whether the service can answer, and which parts are away."""

    status: Literal["ok", "degraded", "unavailable"]
    parts: Annotated[dict[str, str], Field(description="Each part: `ok`, or what is wrong with it.")]
    details: dict[str, object] | None = None


class ProblemItem(BaseModel):
    """One place in the body that is not what the contract takes."""

    loc: tuple[str | int, ...]
    msg: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[ProblemItem, ...] | None = None
