"""A TCP proxy before a store, which can be slow, cut connections, or talk nonsense.

Who asks through it sees a store that misbehaves, while the store itself is well. `FaultyProxy` belongs to one event
loop; `ProxyThread` gives it one, for programs that have none.
"""

import asyncio
import itertools
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Self

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 1 << 16
WAIT_S = 5.0
GARBAGE = (
    b"\x00\xff\xfe\x17 no reply at all\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",  # another server on that port
    b"+OK\r\n",  # a reply, to another question
    b":7\r\n",
    b"*-1\r\n",
    b"*1\r\n$5\r\nhello\r\n",  # an answer of the right kind: a value that nobody wrote
    b"*2\r\n$5\r\nhello\r\n:7\r\n",
    b"*1\r\n$1000000000\r\n",  # more is to come, and never does
)
"""Replies to anything, one after another: what is no RESP, what is not asked for, what never ends."""


class Mode(Enum):
    """How the proxy treats whoever asks through it."""

    PASS = "passes everything on"  # noqa: S105 — no password
    DELAY = "holds each reply back"
    RESET = "resets connections, those there are and new ones"
    GARBAGE = "replies nonsense and asks the store nothing"


class FaultyProxy:
    """Forwards to `port` of this machine, as its mode says; `delay_s` is what `Mode.DELAY` adds."""

    def __init__(self, port: int, *, delay_s: float = 0.05) -> None:
        self.port = 0
        self._store_port = port
        self._delay_s = delay_s
        self._mode = Mode.PASS
        self._nonsense = itertools.cycle(GARBAGE)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Listen on a free port, which is `port` from now on."""
        self._server = await asyncio.start_server(self._accepted, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def turn(self, mode: Mode) -> None:
        """Behave so from now on, on open connections too."""
        self._mode = mode
        if mode is Mode.RESET:
            for caller in self._connections.values():
                _reset(caller)

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        assert self._server
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections[task] = caller
        try:
            if self._mode is Mode.RESET:
                _reset(caller)
            else:
                await self._forward(reader, caller)
        except OSError:
            _reset(caller)  # the store is away: whoever asks must see that
        finally:
            del self._connections[task]
            caller.close()

    async def _forward(self, reader: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        replies, store = await asyncio.open_connection(LOOPBACK, self._store_port)
        ways = [
            asyncio.create_task(self._pass_requests(reader, store, caller)),
            asyncio.create_task(self._pass_replies(replies, caller)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            store.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, store: asyncio.StreamWriter, caller: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            garbled = self._mode is Mode.GARBAGE
            writer, data = (caller, next(self._nonsense)) if garbled else (store, chunk)
            writer.write(data)
            await writer.drain()

    async def _pass_replies(self, replies: asyncio.StreamReader, caller: asyncio.StreamWriter) -> None:
        while chunk := await replies.read(CHUNK_BYTES):
            if self._mode is Mode.DELAY:
                await asyncio.sleep(self._delay_s)
            caller.write(chunk)
            await caller.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN: a linger time of 0 (socket(7), SO_LINGER)."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() != -1:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ProxyThread:
    """A faulty proxy before a store's port, running in a thread of its own inside its block."""

    def __init__(self, port: int, *, delay_s: float = 0.05) -> None:
        self._proxy = FaultyProxy(port, delay_s=delay_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._proxy.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    @property
    def url(self) -> str:
        """Where the store is reached through it."""
        return f"redis://{LOOPBACK}:{self._proxy.port}/0"

    def turn(self, mode: Mode) -> None:
        """Behave so; it does when this returns."""
        self._run(self._proxy.turn(mode))

    def _run(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(WAIT_S)
