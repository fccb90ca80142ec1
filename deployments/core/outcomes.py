"""What becomes of a text at the model, and how it travels: a prediction, or the error its caller is told."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import FiniteFloat, TypeAdapter

from deployments.core.errors import DeadlineExceeded, IntentGraphError, Internal, Overloaded, Unavailable
from deployments.core.prediction import Prediction

Outcome = Prediction | IntentGraphError

ERRORS = {error.slug: error for error in (Overloaded, Unavailable, DeadlineExceeded, Internal)}
"""Those that the model has for a text; what else it raises is a defect."""


@dataclass(frozen=True, slots=True)
class _Failure:
    slug: str
    detail: str
    retry_after_s: FiniteFloat


_REQUEST = TypeAdapter(tuple[FiniteFloat, list[str]])
_OUTCOMES = TypeAdapter(list[Prediction | _Failure])


def request_to_json(texts: Sequence[str], left_s: float) -> bytes:
    """A caller's texts and the seconds left to it, as they travel to a model replica."""
    return _REQUEST.dump_json((left_s, list(texts)))


def request_from_json(value: bytes) -> tuple[list[str], float]:
    """The reverse of `request_to_json`. Raises ValueError."""
    left_s, texts = _REQUEST.validate_json(value)
    return texts, left_s


def outcomes_to_json(outcomes: Sequence[Outcome]) -> bytes:
    """Outcomes as they travel back; numbers keep every digit."""
    return _OUTCOMES.dump_json([_told(each) if isinstance(each, IntentGraphError) else each for each in outcomes])


def outcomes_from_json(value: bytes) -> list[Outcome]:
    """The reverse of `outcomes_to_json`. Raises ValueError."""
    return [_error(each) if isinstance(each, _Failure) else each for each in _OUTCOMES.validate_json(value)]


def _told(error: IntentGraphError) -> _Failure:
    return _Failure(error.slug, error.detail, error.retry_after_s)


def _error(failure: _Failure) -> IntentGraphError:
    if failure.slug not in ERRORS:
        raise ValueError(f"no error is called {failure.slug!r}")
    return ERRORS[failure.slug](failure.detail, retry_after_s=failure.retry_after_s)
