"""Round trips to the feedback log's store: each in bounded time, each failure an `Unavailable`; what that store keeps.

What is written and read there is `feedback_log`'s and `feedback_reader`'s; how it lies there is `log_layout`'s.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.core.errors import StoreRefused, Unavailable
from deployments.core.log_layout import LOG, REPLICATED, LogEntry, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

    from redis.asyncio import Redis

PAGE = 1000
"""Entries of one round trip: some 400 kB, some 5 ms of the store's time."""

_REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",  # `yes` suspends `always` while the file is rewritten
    "maxmemory-policy": "noeviction",
}

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
Command = tuple[str | bytes, ...]
_MARK: Command = ("EVAL", "#!lua flags=allow-oom\nredis.call('SET', KEYS[1], '')", "1", REPLICATED)
"""WAIT waits for what its own connection wrote, and what is sent again may find nothing left to write. Replicas take
all in order: who has this mark has everything before it, whatever connection it came over. It needs no memory, as
deletions need none."""
_SHARES = 3
"""A group is sent twice where the server has not its script yet, and what is between takes time too."""
RawEntry = tuple[bytes, dict[bytes, bytes]]
"""An id, and the fields."""


class LogStore:
    """The log's store.

    Args:
        client: a client that answers in bytes (`decode_responses=False`). It should not retry by itself: a retry within
            the client is safe, but is reported as a duplicate.
        timeout_s: bound of each round trip.
        unsafe: take a store also if it may lose what it acknowledges.
        replicas_acked: so many of its replicas must have received what is written, or it is not acknowledged.
    """

    def __init__(self, client: Redis, *, timeout_s: float, unsafe: bool = False, replicas_acked: int = 0) -> None:
        self.client = client
        self.timeout_s = timeout_s
        self._unsafe = unsafe
        self._replicas_acked = replicas_acked
        self._known_durable = False

    async def ask(self, request: Awaitable[_T], *, let_through: type[Exception] | tuple[()] = ()) -> _T:
        """Await one round trip in bounded time; turn the store's failures, but `let_through`, into `Unavailable`."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self.timeout_s):
                return await request
        except let_through:
            raise
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self.doubt()
            raise Unavailable(f"the feedback log does not answer ({type(error).__name__})") from error

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes]) -> Any:
        """Run a script that writes; as `do`."""
        await self.require_writable()
        return await self.ask(_only(self.run_each(script, len(keys), [(*keys, *arguments)])))

    async def do(self, *command: str | bytes) -> Any:
        """Run a command, on a store that keeps what it acknowledges. Raises `Unavailable`: perhaps done."""
        await self.require_writable()
        return await self.ask(_only(self.write([command])))

    async def run_each(self, script: str, keys: int, calls: Sequence[Command]) -> list[Any]:
        """Run a script once a call, each its `keys` and then its arguments; gives and raises as `write`.

        Scripts go by their digest alone: a server that does not know it has started since, which nobody else may tell.
        """
        from redis.exceptions import NoScriptError

        commands: list[Command] = [("EVALSHA", _digest(script), str(keys), *call) for call in calls]
        replies = await self.write(commands)
        if any(isinstance(reply, NoScriptError) for reply in replies):  # nothing ran
            self.doubt()
            await self.require_writable()
            await self.client.script_load(source(script))
            replies = await self.write(commands)
        return replies

    async def write(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip, with one fsync; gives each one's reply, or the exception in its place.

        MULTI is there for the fsync alone: the server reads some 16 KiB at a time and syncs after each, so that 128
        records of 1 kB cost five fsyncs without it and one with it. A command that fails inside still fails alone.

        What was done, but received by too few replicas in a third of `timeout_s`, is `Unavailable`. Raises RedisError
        or OSError when the store refuses all of it or is away; then perhaps it is done.
        """
        waits = self._replicas_acked > 0
        pipeline = self.client.pipeline(transaction=False)
        for command in (("MULTI",), *commands, *([_MARK] if waits else []), ("EXEC",)):
            pipeline.execute_command(*command)
        if waits:
            pipeline.execute_command("WAIT", str(self._replicas_acked), str(int(self.timeout_s * 1000 / _SHARES)))
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        shortage = self._shortage(replies.pop()) if waits else None
        executed = _executed(replies, len(commands))
        return [each if isinstance(each, Exception) else shortage or each for each in executed]

    def _shortage(self, acked: Any) -> Exception | None:
        """What WAIT's reply lacks."""
        if isinstance(acked, Exception):
            return acked
        if acked >= self._replicas_acked:
            return None
        return Unavailable(
            f"of the {self._replicas_acked} replicas that `feedback_replicas_acked` asks for, {acked} have it"
        )

    async def entries(self, first: str, last: str = "+", *, count: int = PAGE) -> list[LogEntry]:
        """The first `count` entries from `first` to `last`; `(` before an id leaves it out. Raises `Unavailable`."""
        return [LogEntry.parse(entry_id, fields) for entry_id, fields in await self._range(first, last, count)]

    async def all_entries(self, after: str, last: str = "+") -> AsyncIterator[list[LogEntry]]:
        """Every entry after `after` up to `last`, a page at a time, in order. Raises `Unavailable`."""
        async for page in self.raw_entries(after, last):
            yield [LogEntry.parse(entry_id, fields) for entry_id, fields in page]

    async def raw_entries(self, after: str, last: str = "+") -> AsyncIterator[list[RawEntry]]:
        """The same as they lie in the store. Raises `Unavailable`."""
        while page := await self._range(f"({after}", last, PAGE):
            yield page
            after = page[-1][0].decode()

    async def _range(self, first: str, last: str, count: int) -> list[RawEntry]:
        page: Any = await self.ask(self.client.xrange(LOG, min=first, max=last, count=count))
        return list(page)

    async def newest_id(self) -> str | None:
        """The id of the last entry; None of an empty log. Raises `Unavailable`."""
        newest: Any = await self.ask(self.client.xrevrange(LOG, count=1))
        return newest[0][0].decode() if newest else None

    async def now_s(self) -> float:
        """The store's time, seconds since 1970. Raises `Unavailable`."""
        return seconds(await self.ask(self.client.time()))

    def doubt(self) -> None:
        """Have the store checked again before the next write: another server may have taken its place."""
        self._known_durable = False

    async def require_durable(self) -> None:
        """Check the store before its first acknowledgement, and again after a doubt.

        Raises `StoreRefused`, unless `unsafe`, and `Unavailable`.
        """
        if self._known_durable:
            return
        try:
            await self.check_durability()
        except StoreRefused as refusal:
            if not self._unsafe:
                raise
            _logger.warning("feedback may be lost: %s", refusal)
        self._known_durable = True

    async def require_writable(self) -> None:
        """The same for whoever asks: raises `Unavailable` (503), also for a store that is refused."""
        try:
            await self.require_durable()
        except StoreRefused as refusal:
            raise Unavailable(str(refusal)) from None

    async def check_durability(self) -> None:
        """Raise `StoreRefused` unless the store keeps what it acknowledges; the message names each setting to change.

        Where the server does not show its settings (managed services forbid CONFIG), what INFO tells is checked and a
        warning names the rest. Raises `Unavailable` if the store is away.
        """
        found = await self._settings()
        wrong = [
            f"`{name} {wanted}` (it is {found[name]})"
            for name, wanted in _REQUIRED.items()
            if name in found and found[name] != wanted
        ]
        if wrong:
            raise StoreRefused(
                f"the feedback store would lose acknowledged records; set {', '.join(wrong)} on it, or go on all the "
                "same with `unsafe_feedback: true` (`intents up --unsafe-feedback`)"
            )
        unseen = [f"`{name} {wanted}`" for name, wanted in _REQUIRED.items() if name not in found]
        if unseen:
            _logger.warning("the feedback store hides its settings; make sure of %s", ", ".join(unseen))

    async def _settings(self) -> Mapping[str, str]:
        from redis.exceptions import ResponseError

        try:
            shown = await self.ask(self.client.config_get(*_REQUIRED), let_through=ResponseError)
        except ResponseError:
            return await self._settings_from_info()
        return {str(name): str(value) for name, value in shown.items()}

    async def _settings_from_info(self) -> Mapping[str, str]:
        from redis.exceptions import ResponseError

        try:
            info = await self.ask(self.client.info(), let_through=ResponseError)
        except ResponseError:
            return {}
        return {"appendonly": "yes" if info["aof_enabled"] else "no", "maxmemory-policy": str(info["maxmemory_policy"])}


async def _only(writing: Awaitable[list[Any]]) -> Any:
    """The reply of the one command that is written."""
    (reply,) = await writing
    if isinstance(reply, Exception):
        raise reply
    return reply


def _executed(replies: Sequence[Any], commands: int) -> list[Any]:
    """The replies of what stands between MULTI and EXEC. Raises why nothing was executed: the first refusal says it."""
    executed = replies[-1]
    if isinstance(executed, Exception):
        raise next((each for each in replies if isinstance(each, Exception)), executed)
    return list(executed[:commands])


@functools.cache
def source(script: str) -> str:
    """The text of a script beside this module."""
    return resources.files("deployments.core").joinpath(script).read_text(encoding="utf-8")


@functools.cache
def _digest(script: str) -> str:
    """What the server knows a script by."""
    return hashlib.sha1(source(script).encode(), usedforsecurity=False).hexdigest()
