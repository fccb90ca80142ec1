"""The file of API keys: what it says of each key, and how one is made.

    ig_<id>_<secret>     what a caller sends as `Authorization: Bearer …`; shown once, when it is made
    id                   eight hexadecimal digits, no secret: finds the entry
    secret               32 random bytes in base64url; the file has their SHA-256 only

A fast hash is right: nobody guesses 256 random bits, however fast the hash, and it is computed with every request. Slow
ones protect what people choose (NIST SP 800-63B, 5.1.2.2, draws the line at 112 bits).

A revoked key stays in the file, so that its name, which the feedback log speaks of, never becomes somebody else's.
Looking a key up is `key_ring`'s.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deployments.core.access import RESERVED_NAMES, Scope
from deployments.core.errors import StartupError
from deployments.core.replaced_file import replacing

PREFIX = "ig"

_ID_BYTES, _SECRET_BYTES = 4, 32


class ApiKey(BaseModel):
    """A key as the file has it: everything but its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: datetime
    revoked: datetime | None = None


class KeysFile(BaseModel):
    """The content of a keys file. Names and ids are unique, those of revoked keys too."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _tells_keys_apart(self) -> Self:
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names) or len({key.id for key in self.keys}) < len(names):
            raise ValueError("two keys have the same name or id")
        if taken := RESERVED_NAMES.intersection(names):
            raise ValueError(f"a key may not be named {', '.join(taken)}")
        return self

    @property
    def in_force(self) -> tuple[ApiKey, ...]:
        """The keys that are not revoked."""
        return tuple(key for key in self.keys if key.revoked is None)

    def with_new(self, name: str, scopes: Sequence[str], now: datetime) -> tuple["KeysFile", str]:
        """The file with one key more, and that key, which nothing else has.

        Raises:
            StartupError: the name is taken, also by a revoked key, or is none; or a scope is none.
        """
        if any(key.name == name for key in self.keys):
            raise StartupError(f"there is or was a key named {name}; name the new one otherwise")
        key_id, secret = self._new_id(), secrets.token_urlsafe(_SECRET_BYTES)
        entry = {"id": key_id, "name": name, "scopes": tuple(dict.fromkeys(scopes)), "created": now}
        try:
            key = ApiKey.model_validate(entry | {"sha256": digest(secret.encode())})
            return KeysFile(keys=(*self.keys, key)), f"{PREFIX}_{key_id}_{secret}"
        except ValidationError as error:
            raise StartupError(f"no such key can be made ({_first_of(error)})") from None

    def _new_id(self) -> str:
        taken = {key.id for key in self.keys}
        while (drawn := secrets.token_hex(_ID_BYTES)) in taken:
            pass
        return drawn

    def with_revoked(self, name: str, now: datetime) -> "KeysFile":
        """The file with that key revoked.

        Raises:
            StartupError: no key of that name is in force.
        """
        if not any(key.name == name for key in self.in_force):
            raise StartupError(f"no key named {name} is in force; `intents keys list` shows them")
        revoked = {key.name: key.model_copy(update={"revoked": now}) for key in self.keys if key.name == name}
        return KeysFile(keys=tuple(revoked.get(key.name, key) for key in self.keys))


def digest(secret: bytes) -> str:
    """What the file has of a secret."""
    return hashlib.sha256(secret).hexdigest()


FileMark = tuple[int, int, int]
"""When a file was written, its size, and which file it is: what a change of the keys shows in."""


def mark_of(status: os.stat_result) -> FileMark:
    """The mark of a file."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def read(path: Path) -> KeysFile:
    """The keys of a file.

    Raises:
        StartupError: there is none, or it is no keys file; one line.
    """
    return read_marked(path)[0]


def read_marked(path: Path) -> tuple[KeysFile, FileMark]:
    """The keys of a file, and the mark of the very file they are from. Raises as `read` does."""
    place = f"the keys file {path.absolute()}"
    try:
        with path.open("rb") as file:
            mark = mark_of(os.fstat(file.fileno()))
            return KeysFile.model_validate_json(file.read()), mark
    except FileNotFoundError:
        raise StartupError(f"{place} is missing; `intents keys add` makes one") from None
    except OSError as error:
        raise StartupError(f"{place} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise StartupError(f"{place} is none ({_first_of(error)}); `intents keys add` makes one elsewhere") from None


def _first_of(error: ValidationError) -> str:
    """The first thing that is wrong, without the value that is."""
    found = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else found["msg"]


@contextlib.contextmanager
def changing(path: Path) -> Iterator[Callable[[KeysFile], None]]:
    """Hold a keys file against other commands while it is read and changed; gives what writes it.

    Raises:
        StartupError: its folder cannot be used.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartupError(f"the folder {target.parent} cannot be used ({error.strerror})") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the folder, for each change is another file
        yield lambda content: _write(target, content)
    finally:
        os.close(folder)


def _write(path: Path, content: KeysFile) -> None:
    """Replace the file at once, never half; it is on disk when this returns.

    Only its owner reads a new one. Another keeps its owner, group and mode: a service of another user than the one who
    changes it would else go on with the keys it knows, revoked ones among them.
    """
    try:
        with replacing(path, keep_access=True) as file:
            file.write(content.model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
    except PermissionError as error:
        raise StartupError(
            f"the keys file {path} cannot be written as its owner's ({error.strerror}); run this as that user"
        ) from None
    except OSError as error:
        raise StartupError(f"the keys file {path} cannot be written ({error.strerror})") from None


def utc_now() -> datetime:
    """This second."""
    return datetime.now(UTC).replace(microsecond=0)
