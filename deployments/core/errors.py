"""Every error the service answers with, and the HTTP status each becomes.

    IntentGraphError
    ├── BadRequest            400  malformed JSON or UTF-8
    │   └── TooLarge          413  body over its limit
    ├── Unauthorized          401  no API key, or none that is in force
    ├── Forbidden             403  more than this caller may, or the settings allow
    ├── InvalidInput          422  well-formed, but not what the contract takes
    │   └── KeyConflict       422  an idempotency key seen before with another body
    ├── NotFound              404  no such path or record
    │   └── MethodNotAllowed  405  the path exists, the method does not
    ├── Conflict              409  the record is not in the state that this needs
    ├── Gone                  410  the record that was sent with this idempotency key is deleted
    ├── Overloaded            429  a bounded queue is full, or the caller too fast; retry after a while
    ├── Unavailable           503  a needed part is away; retry after a while
    │   └── DeadlineExceeded  503  the answer did not come within the request's time
    └── Internal              500  a defect; the log has its stack

Only the ingress turns these into HTTP. `slug` is stable and becomes the last part of the problem's `type`
(RFC 9457); `retryable` says whether the same request may succeed later. Each class survives pickling, so it can
cross a handle.

Failures at start have no HTTP status and stand apart:

    StartupError              one line that names the remedy
    ├── ArtifactError         a model artifact that cannot be served
    └── StoreRefused          the feedback log's store does not keep what it acknowledges
"""

from typing import ClassVar


class IntentGraphError(Exception):
    """An error with a status, a stable slug and a message fit for the caller."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0) -> None:
        """Keep the message for the caller and, for retryable errors, when to come back (seconds)."""
        super().__init__(detail)
        self.detail = detail or self.title
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the message; keyword-only state follows."""
        return type(self), (self.detail,), self.__dict__

    @property
    def handle_message(self) -> str:
        """The message a Python handle's caller sees: slug first, so that programs can tell errors apart."""
        return f"{self.slug}: {self.detail}"


class BadRequest(IntentGraphError):
    """The body is not UTF-8 or not JSON."""

    status = 400
    slug = "bad-request"
    title = "Malformed request"


class TooLarge(BadRequest):
    """The body is larger than the path takes."""

    status = 413
    slug = "too-large"
    title = "Body too large"


class Unauthorized(IntentGraphError):
    """No API key, or none that is in force; `sent` says whether there was one."""

    status = 401
    slug = "unauthorized"
    title = "API key needed"

    def __init__(self, detail: str = "", *, sent: bool = False) -> None:
        """Keep the message, which never repeats what was sent, and whether a key was."""
        super().__init__(detail)
        self.sent = sent


class Forbidden(IntentGraphError):
    """More than this caller may, or than the settings allow; sent again it is refused again."""

    status = 403
    slug = "forbidden"
    title = "Not allowed"


class InvalidInput(IntentGraphError):
    """The body is JSON, but not what the contract takes; `errors` lists each place."""

    status = 422
    slug = "invalid-input"
    title = "Invalid input"

    def __init__(self, detail: str = "", *, errors: list[dict[str, object]] | None = None) -> None:
        """Keep the message and the list of `{"loc", "msg"}`."""
        super().__init__(detail)
        self.errors = errors or []


class KeyConflict(InvalidInput):
    """The idempotency key was used before with another body."""

    slug = "idempotency-key-conflict"
    title = "Idempotency key reused with another body"


class NotFound(IntentGraphError):
    """No such path or record."""

    status = 404
    slug = "not-found"
    title = "Not found"


class MethodNotAllowed(NotFound):
    """The path exists but does not take this method."""

    status = 405
    slug = "method-not-allowed"
    title = "Method not allowed"

    def __init__(self, detail: str = "", *, allowed: str = "") -> None:
        """Keep the message and the methods the path takes."""
        super().__init__(detail)
        self.allowed = allowed


class Conflict(IntentGraphError):
    """The record is not in the state that this needs; sent again it is refused again."""

    status = 409
    slug = "conflict"
    title = "Not in this state"


class Gone(IntentGraphError):
    """The record that was sent with this idempotency key is deleted."""

    status = 410
    slug = "gone"
    title = "Deleted"


class Overloaded(IntentGraphError):
    """More than a bounded queue holds, or than the caller's rate allows."""

    status = 429
    slug = "overloaded"
    title = "Overloaded"
    retryable = True


class Unavailable(IntentGraphError):
    """A part this request needs is away."""

    status = 503
    slug = "unavailable"
    title = "Temporarily unavailable"
    retryable = True


class DeadlineExceeded(Unavailable):
    """The answer did not come within the request's time."""

    slug = "deadline-exceeded"
    title = "Deadline exceeded"


class Internal(IntentGraphError):
    """A defect. The message never carries the cause; the log does."""


class StartupError(Exception):
    """The service cannot start; the message is one line that names the remedy."""


class ArtifactError(StartupError):
    """A model artifact that cannot be served."""


class StoreRefused(StartupError):
    """The feedback log's store does not keep what it would acknowledge."""


def withheld(error: BaseException) -> Exception:
    """The stack and type of an error for the log, without its message or causes: they may quote a user's text."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return RuntimeError(f"{name} (message withheld: it may quote a text)").with_traceback(error.__traceback__)
