"""Who a request is from, and whether it may go on: settled before its body is read."""

from starlette.types import Scope

from deployments.core import access
from deployments.core.access import Caller, Callers
from deployments.core.errors import IntentGraphError

CALLER = "intents.caller"
"""Where a request's scope has its caller, once that is known: a key is looked up once, though the front asks too."""


class Admission:
    """Looks at a request's `Authorization` header, and at what its caller may."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    def admit(self, request: Scope, needed: access.Scope) -> None:
        """Let a request go on, or not.

        Raises:
            Unauthorized: it has no key that is in force (401).
            Forbidden: its caller has not the scope it needs (403).
        """
        if CALLER not in request:
            request[CALLER] = self._callers.of(_authorization(request))
        caller_of(request).require(needed)

    def admits(self, request: Scope, needed: access.Scope) -> bool:
        """Whether `admit` would let it go on."""
        try:
            self.admit(request, needed)
        except IntentGraphError:
            return False
        return True


def caller_of(request: Scope) -> Caller:
    """The caller of a request that was admitted."""
    caller: Caller = request[CALLER]
    return caller


def _authorization(request: Scope) -> bytes | None:
    return next((value for name, value in request["headers"] if name == b"authorization"), None)
