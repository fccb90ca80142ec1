"""Who calls, and what they may.

A call needs one scope; a caller has some. Scopes that contain others:

    admin ── correct ── feedback
        └─── classify
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["classify", "feedback", "correct", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_CONTAINED: dict[Scope, frozenset[Scope]] = {
    "classify": frozenset({"classify"}),
    "feedback": frozenset({"feedback"}),
    "correct": frozenset({"correct", "feedback"}),
    "admin": frozenset(SCOPES),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls. `name` is the API key's name, empty where there are no keys; it is written to the log."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether one of the caller's scopes is `scope` or contains it."""
        return any(scope in _CONTAINED[held] for held in self.scopes)


LOCAL = Caller("", frozenset({"admin"}))
"""Whoever reaches a service without keys that listens on this machine only; and every deployment handle."""
ANYONE = Caller("", frozenset({"classify", "feedback"}))
"""Whoever reaches a service that is `auth: open`."""
