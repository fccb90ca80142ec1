"""Calls from one replica to another over a TCP connection of their own.

A Serve handle routes, balances and retries, and for a look-up that is most of its cost (2.4 ms, against 0.8 over this).
So a handle finds a replica, and makes the calls while there is no connection; the connection carries the others.

    client ── token ──▶ server                                once; a stranger, who has none, is hung up on
    client ── length, number, request ──▶ server              calls overlap, replies come as they are ready
    client ◀── length, number, failed?, reply ── server

What requests and replies say is their owners'. Nothing is unpickled.
"""

import asyncio
import contextvars
import hmac
import itertools
import logging
import random
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.core.errors import IntentGraphError, Internal, Unavailable

REQUEST = struct.Struct(">II")
REPLY = struct.Struct(">II?")
TOKEN_BYTES = 32
ACCEPTED = b"\x01"
MAX_REQUEST_BYTES = 1024 * 1024
"""Beyond it the other side is not one of ours."""
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""Between attempts to connect; meanwhile calls go by handle, which is slower and nothing else."""
REDIAL_S = 30.0
"""At least so often a channel asks anew whom to call, so that calls spread over replicas that came later."""

logger = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and what it wants to hear first. The token is a secret: it is in no `repr`."""

    host: str
    port: int
    token: bytes = field(repr=False)


class RpcServer:
    """Answers calls on a port of its own.

    Args:
        answer: Gives the reply to a request. Its `IntentGraphError` reaches the caller as `Unavailable`.
    """

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._token = secrets.token_bytes(TOKEN_BYTES)

    async def start(self, host: str) -> Address:
        """Listen on a free port of `host`. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering: set[asyncio.Task[None]] = set()
        try:
            # A client whose machine is gone says so to nobody.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                token = await reader.readexactly(TOKEN_BYTES)
            if not hmac.compare_digest(token, self._token):
                logger.debug("hung up on a stranger")  # who may come as often as they like: no line for each
                return
            if not writer.is_closing():
                writer.write(ACCEPTED)
            while True:
                size, number = REQUEST.unpack(await reader.readexactly(REQUEST.size))
                if size > MAX_REQUEST_BYTES:
                    logger.warning("hung up on a caller whose request has %d bytes", size)
                    return
                call = asyncio.create_task(self._reply(number, await reader.readexactly(size), writer))
                answering.add(call)
                call.add_done_callback(answering.discard)
        except (OSError, EOFError):
            pass  # the caller left, or said nothing
        finally:
            for call in answering:
                call.cancel()
            writer.close()

    async def _reply(self, number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        failed = False
        try:
            reply = await self._answer(request)
        except Exception as error:
            if not isinstance(error, IntentGraphError):
                logger.exception("a call failed")
                error = Internal("the call failed; the log of the replica that answered it has the cause")
            failed, reply = True, error.detail.encode()
        if not writer.is_closing():  # uvloop raises RuntimeError for a write to what is closing
            writer.write(REPLY.pack(len(reply), number, failed) + reply)


class RpcConnection:
    """The client's end of one connection. Made by `connect`; ends with either side, and stays so."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._is_retired = False
        # In nobody's context: Serve cancels what an ended request left.
        self.ended = asyncio.create_task(self._receive(), context=contextvars.Context())

    async def call(self, request: bytes) -> bytes:
        """The reply to a request.

        Raises:
            ConnectionError: the connection ended; whether the request was answered is not known.
            Unavailable: the other side could not answer it.
        """
        if self.ended.done() or self._writer.is_closing():  # closing: as in the server
            raise ConnectionResetError("the connection has ended")
        number = next(self._numbers) % 2**32
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            self._writer.write(REQUEST.pack(len(request), number) + request)
            return await reply
        finally:
            self._waiting.pop(number, None)
            if self._is_retired and not self._waiting:
                self.close()

    def retire(self) -> None:
        """Close it after the last reply that is waited for."""
        self._is_retired = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """End it; whoever waits for a reply gets `ConnectionError`."""
        self.ended.cancel()
        self._end()

    async def _receive(self) -> None:
        try:
            while True:
                size, number, failed = REPLY.unpack(await self._reader.readexactly(REPLY.size))
                content = await self._reader.readexactly(size)
                reply = self._waiting.get(number)
                if reply is None or reply.done():
                    continue  # its caller did not wait
                if failed:
                    reply.set_exception(Unavailable(content.decode(errors="replace")))
                else:
                    reply.set_result(content)
        except (OSError, EOFError):
            pass  # the other side left
        finally:
            self._end()

    def _end(self) -> None:
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError("the connection ended before the reply"))
        self._writer.close()


async def connect(address: Address) -> RpcConnection:
    """Connect to a server. Raises OSError (`TimeoutError` too), or EOFError when it hangs up."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            writer.write(address.token)
            await reader.readexactly(len(ACCEPTED))
        except BaseException:
            writer.close()
            raise
    return RpcConnection(address, reader, writer)


class RpcChannel(Generic[R]):
    """Keeps a connection to a server that `find` names: made in the background, and anew when it ends.

    Make it in a coroutine: a task here begins at once.

    Args:
        find: Gives the address of a server; None when there is none at present. May raise.
        read: Makes of a reply what its caller wants. Raises ValueError for what it cannot read.
    """

    def __init__(self, find: Callable[[], Awaitable[Address | None]], read: Callable[[bytes], R]) -> None:
        self._find = find
        self._read = read
        self._connection: RpcConnection | None = None
        self._keeping = asyncio.create_task(self._keep(), context=contextvars.Context())

    async def call(self, request: bytes, timeout_s: float) -> R:
        """The reply to a request, read. What is none ends the connection: the next one may be to another server.

        Raises:
            ConnectionError: there is no connection at present, or it ended; it may be asked in another way.
            TimeoutError: no reply in time.
            Unavailable: the other side could not answer it.
            ValueError: its reply cannot be read.
        """
        if (connection := self._connection) is None:
            raise ConnectionRefusedError("not connected yet")
        try:
            async with asyncio.timeout(timeout_s):
                return self._read(await connection.call(request))
        except (TimeoutError, Unavailable, ValueError):
            connection.close()
            raise

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._dial()
            except Exception as error:  # noqa: BLE001 — whatever it is: calls go another way, and it is tried again
                logger.debug("no direct connection (%s)", type(error).__name__)
            if self._connection:
                pause_s = FIRST_PAUSE_S
                await asyncio.wait([self._connection.ended], timeout=REDIAL_S * random.uniform(0.5, 1))  # noqa: S311 — spreads replicas
                if self._connection.ended.done():
                    self._connection = None
            if self._connection is None:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _dial(self) -> None:
        address = await self._find()
        if address is None or (self._connection and self._connection.address == address):
            return
        before, self._connection = self._connection, await connect(address)
        if before:
            before.retire()
