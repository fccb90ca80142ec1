"""Errors cross processes whole."""

import pickle

import pytest

from deployments.core import errors

ANSWERS = [
    error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.IntentGraphError)
]


@pytest.mark.parametrize("error_type", ANSWERS)
def test_every_error_survives_pickling(error_type: type[errors.IntentGraphError]):
    """Type, message and state arrive as they left."""
    error = error_type("text has 7,204 characters")
    error.retry_after_s = 7.0
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is error_type
    assert (copy.detail, copy.retry_after_s, vars(copy)) == ("text has 7,204 characters", 7.0, vars(error))


def test_slugs_tell_errors_apart():
    """Programs branch on them."""
    assert len({error.slug for error in ANSWERS}) == len(ANSWERS) - 1  # Internal is the base's own


def test_only_overload_and_absence_are_worth_a_retry():
    """429 and 503 carry Retry-After, nothing else does."""
    assert {error.status for error in ANSWERS if error.retryable} == {429, 503}
