"""What travels between an ingress and a model replica arrives as it was."""

import json

import pytest

from deployments.core.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from deployments.core.outcomes import (
    Outcome,
    outcomes_from_json,
    outcomes_to_json,
    request_from_json,
    request_to_json,
)
from tests.unit.fakes import prediction


def test_a_request_arrives_as_it_was():
    """Every character, and the time left."""
    texts = ["é\n\u2028 𝄞\x00\x1f", "", "plain"]

    assert request_from_json(request_to_json(texts, 1.234567)) == (texts, 1.234567)


def test_outcomes_arrive_as_they_were():
    """In order; errors with their kind, words and time to come back."""
    errors = [
        Overloaded("full", retry_after_s=2.5),
        DeadlineExceeded("late"),
        Unavailable("away"),
        Internal(),
    ]
    sent: list[Outcome] = [prediction("é"), *errors, prediction()]

    got = outcomes_from_json(outcomes_to_json(sent))

    assert (got[0], got[-1]) == (sent[0], sent[-1])
    told = [(type(each), each.detail, each.retry_after_s) for each in got if isinstance(each, Exception)]
    assert told == [(type(each), each.detail, each.retry_after_s) for each in errors]


def test_an_error_that_nobody_knows_is_not_read():
    """Another version's, perhaps; a handle can still bring it."""
    failure = {"slug": "unheard-of", "detail": "", "retry_after_s": 1.0}

    with pytest.raises(ValueError, match="unheard-of"):
        outcomes_from_json(json.dumps([failure]).encode())
