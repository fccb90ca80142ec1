"""The API keys in force, as a service looks them up, and following the file that has them."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from deployments.core.access import Caller
from deployments.core.api_keys import PREFIX, KeysFile, digest, mark_of, read_marked
from deployments.core.errors import StartupError, Unauthorized

LOOK_PERIOD_S = 1.0
"""So often the file is looked at: a key is refused within this, and the time to read it, of its revocation."""

_PREFIX = PREFIX.encode()
_SCHEME = b"bearer "
_OF_NOBODY = digest(b"")

logger = logging.getLogger(__name__)


class KeyRing:
    """Tells whose key a request has; implements `access.Callers`.

    Args:
        path: The keys file. Once it is broken or gone, the keys that were read last stay in force.
        sleep: Waits so many seconds.

    Raises:
        StartupError: there is no such file, or it is no keys file: a service that was given one starts with it or not.
    """

    def __init__(self, path: Path, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._path = path
        self._sleep = sleep
        self._complaint = ""
        self._following: asyncio.Task[None] | None = None
        content, self._mark = read_marked(path)
        self._entries = _entries(content)

    def of(self, authorization: bytes | None) -> Caller:
        """See `Callers`. Costs 3 µs, and its time tells nothing of a secret.

        Raises:
            Unauthorized: no key was sent, or none that is in force (401).
        """
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthorized("this service needs an API key; send the header `Authorization: Bearer ig_…`")
        prefix, _, rest = authorization[len(_SCHEME) :].strip().partition(b"_")
        key_id, _, secret = rest.partition(b"_")
        expected, caller = self._entries.get(key_id, (_OF_NOBODY, None))  # an unknown id is compared too
        if not hmac.compare_digest(digest(secret), expected) or prefix != _PREFIX or caller is None:
            raise Unauthorized("the API key is not one of this service's, or is revoked", sent=True)
        return caller

    def follow(self) -> None:
        """From now on take over what the file becomes. Call it in the event loop."""
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await self._sleep(LOOK_PERIOD_S)
            try:
                await asyncio.to_thread(self.look)
            except Exception:  # a defect must not end the following: revoked keys would stay in force unseen
                logger.exception("looking at the keys file failed; trying again")

    def look(self) -> None:
        """Take the file over if it changed. One that is broken or gone is told of once, and tried again each time."""
        if not self._complaint and self._is_as_read():
            return
        try:
            content, self._mark = read_marked(self._path)
        except StartupError as error:
            if str(error) != self._complaint:
                logger.error("%s; the keys that were read last stay in force", error)  # noqa: TRY400 — no defect
            self._complaint = str(error)
        else:
            self._complaint = ""
            self._entries = _entries(content)
            logger.info("the keys file changed; API keys in force: %d", len(self._entries))

    def _is_as_read(self) -> bool:
        try:
            return mark_of(self._path.stat()) == self._mark
        except OSError:
            return False


def _entries(content: KeysFile) -> dict[bytes, tuple[str, Caller]]:
    """By id, the digest of each key in force and whose it is."""
    return {key.id.encode(): (key.sha256, Caller(key.name, frozenset(key.scopes))) for key in content.in_force}
