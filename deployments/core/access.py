"""Who calls, and what they may.

A call needs one scope; a caller has some. Scopes that contain others:

    admin ── correct ── feedback
        └─── classify

Who a request is from, a `Callers` tells: `WithoutKeys` here, or the key ring of `api_keys`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from deployments.core.errors import Forbidden

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
    """Somebody who calls. `name` is the API key's, and goes to the log; empty for whoever is trusted without one."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether one of the caller's scopes is `scope` or contains it."""
        return any(scope in _CONTAINED[held] for held in self.scopes)

    def require(self, scope: Scope) -> None:
        """Go on only if the caller may.

        Raises:
            Forbidden: the scope is missing (403); the message names it.
        """
        if not self.may(scope):
            who = "anybody may call this service (`auth: open`), and" if self.name == _ANYBODY else f"{self.name!r}"
            held = ", ".join(f"`{each}`" for each in SCOPES if each in self.scopes)
            raise Forbidden(f"this call needs the scope `{scope}`; {who} has {held}")


_ANYBODY = "anyone"
RESERVED_NAMES = frozenset({_ANYBODY})
"""Names that no API key may have."""

LOCAL = Caller("", frozenset({"admin"}))
"""Whoever reaches a service without keys that listens on this machine only; and every deployment handle."""
ANYONE = Caller(_ANYBODY, frozenset({"classify", "feedback"}))
"""Whoever reaches a service that is `auth: open`: all of them one caller."""
TRUSTED_ANYONE = Caller(_ANYBODY, ANYONE.scopes | {"correct"})
"""The same with `apply_untrusted`."""


class Callers(Protocol):
    """Tells who a request is from. Asked once a request, so it costs microseconds and waits for nothing."""

    def of(self, authorization: bytes | None) -> Caller:
        """The caller of a request with that `Authorization` header.

        Raises:
            Unauthorized: nobody known (401).
        """


@dataclass(frozen=True, slots=True)
class WithoutKeys:
    """Everybody is the same caller, whatever key they send."""

    caller: Caller

    def of(self, authorization: bytes | None) -> Caller:  # noqa: ARG002 — as `Callers` has it
        """See `Callers`."""
        return self.caller
