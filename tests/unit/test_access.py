"""What each scope lets its holder do."""

import pytest

from deployments.core.access import ANYONE, LOCAL, SCOPES, TRUSTED_ANYONE, Caller, WithoutKeys
from deployments.core.errors import Forbidden

HOLDS = {
    "classify": {"classify"},
    "feedback": {"feedback"},
    "correct": {"feedback", "correct"},
    "admin": {"classify", "feedback", "correct", "admin"},
}


@pytest.mark.parametrize("held", SCOPES)
def test_a_scope_holds_itself_and_those_below_it(held: str):
    """`admin` all, `correct` the feedback it is sent with, and nothing else another."""
    caller = Caller("somebody", frozenset({held}))

    assert {scope for scope in SCOPES if caller.may(scope)} == HOLDS[held]


def test_a_caller_with_several_scopes_may_what_any_of_them_allows():
    """They add up."""
    caller = Caller("somebody", frozenset({"classify", "correct"}))

    assert {scope for scope in SCOPES if caller.may(scope)} == {"classify", "feedback", "correct"}


def test_who_may_not_is_told_which_scope_is_missing_and_which_are_held():
    """So whoever reads it knows what to ask for."""
    caller = Caller("app", frozenset({"classify", "feedback"}))
    caller.require("classify")

    with pytest.raises(Forbidden, match=r"needs the scope `admin`; 'app' has `classify`, `feedback`"):
        caller.require("admin")


def test_without_keys_everybody_is_the_same_whatever_they_send():
    """A key that a client sends by habit does no harm."""
    callers = WithoutKeys(ANYONE)

    assert callers.of(None) is callers.of(b"Bearer ig_00000000_x") is ANYONE


def test_strangers_never_operate_the_service():
    """Not even where their corrections are believed; only callers on this machine do."""
    assert LOCAL.may("admin")
    assert not ANYONE.may("correct")
    assert TRUSTED_ANYONE.may("correct")
    assert not TRUSTED_ANYONE.may("admin")
