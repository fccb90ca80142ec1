"""Calls from one replica to another over a TCP connection of their own.

A Serve handle routes, balances and retries, and for a look-up that is most of its cost (2.4 ms, against 0.8 over this).
So a handle finds the replicas, and makes the calls while there is no connection; the connections carry the others.

    client ── token ──▶ server                                once; a stranger, who has none, is hung up on
    client ── length, number, over?, request ──▶ server       calls overlap; one that nobody waits for is called off
    client ◀── length, number, failed?, reply ── server       as replies are ready; number `RETIRE`: call others

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
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from deployments.core.errors import IntentGraphError, Internal, Unavailable

REQUEST = struct.Struct(">II?")
REPLY = struct.Struct(">II?")
RETIRE = 2**32 - 1
"""A number that no call has."""
TOKEN_BYTES = 32
ACCEPTED = b"\x01"
MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Beyond it the other side is not one of ours: a hundred texts of 5,000 characters are 3 MB, were each one escaped."""
CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""Between attempts to connect; meanwhile calls go by handle, which is slower and nothing else."""
FIND_PERIOD_S = 3.0
"""At least so often a channel asks anew whom to call: a replica that came later is idle until then."""

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
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str) -> Address:
        """Listen on a free port of `host`. Raises OSError."""
        self._server = await asyncio.start_server(self._welcome, host, 0)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    async def drain(self) -> None:
        """Take nobody new, send the others to other servers, and return when whatever was under way is answered."""
        if self._server:
            self._server.close()
        for writer in self._clients.values():
            if not writer.is_closing():
                writer.write(REPLY.pack(0, RETIRE, False))
        if self._clients:
            await asyncio.wait(self._clients)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients[client] = writer
        client.add_done_callback(self._clients.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering: dict[int, asyncio.Task[None]] = {}
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
                size, number, is_over = REQUEST.unpack(await reader.readexactly(REQUEST.size))
                if size > MAX_REQUEST_BYTES:
                    logger.warning("hung up on a caller whose request has %d bytes", size)
                    return
                request = await reader.readexactly(size)
                if not is_over:
                    call = asyncio.create_task(self._reply(number, request, writer))
                    answering[number] = call
                    call.add_done_callback(partial(_forget, answering, number))
                elif number in answering:
                    answering[number].cancel()
        except (OSError, EOFError):
            pass  # the caller left, or said nothing
        finally:
            for call in answering.values():
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


def _forget(answering: dict[int, asyncio.Task[None]], number: int, _call: asyncio.Task[None]) -> None:
    del answering[number]


class RpcConnection:
    """The client's end of one connection. Made by `connect`; ends with either side, and stays so."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._is_retired = False
        self.load = 0
        # In nobody's context: Serve cancels what an ended request left.
        self.ended = asyncio.create_task(self._receive(), context=contextvars.Context())

    @property
    def takes_calls(self) -> bool:
        """Whether it has neither ended nor been retired, by either side."""
        return not (self._is_retired or self._has_ended)

    @property
    def _has_ended(self) -> bool:
        return self.ended.done() or self._writer.is_closing()  # closing: as in the server

    async def call(self, request: bytes, *, weight: int = 1) -> bytes:
        """The reply to a request. Cancelled, it calls the request off. `weight` counts as `load` until the reply.

        Raises:
            ConnectionError: the connection ended; whether the request was answered is not known.
            Unavailable: the other side could not answer it.
        """
        if self._has_ended:
            raise ConnectionResetError("the connection has ended")
        number = next(self._numbers) % RETIRE
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        self.load += weight
        try:
            self._writer.write(REQUEST.pack(len(request), number, False) + request)
            return await reply
        finally:
            self.load -= weight
            self._waiting.pop(number, None)
            if reply.cancelled() and not self._has_ended:
                self._writer.write(REQUEST.pack(0, number, True))
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
                if number == RETIRE:
                    self.retire()
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
    """Keeps a connection to each server that `find` names: made in the background, and anew when one ends.

    A call goes to the less loaded of two servers chosen at random, which balances nearly as well as to the least loaded
    of all, and sends no herd to the one that came last (Mitzenmacher, The Power of Two Choices, 2001).

    Make it in a coroutine: a task here begins at once.

    Args:
        find: Gives the addresses of the servers there are at present. May raise.
        read: Makes of a reply what its caller wants. Raises ValueError for what it cannot read.
    """

    def __init__(self, find: Callable[[], Awaitable[Collection[Address]]], read: Callable[[bytes], R]) -> None:
        self._find = find
        self._read = read
        self._connections: dict[Address, RpcConnection] = {}
        self._keeping = asyncio.create_task(self._keep(), context=contextvars.Context())

    async def call(self, request: bytes, *, timeout_s: float | None = None, weight: int = 1) -> R:
        """The reply to a request, read. What is none ends that connection: the next call may be to another server.

        Args:
            request: What the server is asked.
            timeout_s: How long a server in order takes at most; without it, how long to wait is the caller's affair.
            weight: What the request counts among those under way.

        Raises:
            ConnectionError: there is no connection at present, or it ended; it may be asked in another way.
            TimeoutError: no reply in time.
            Unavailable: the other side could not answer it.
            ValueError: its reply cannot be read.
        """
        connection = self._less_loaded_of_two()
        try:
            async with asyncio.timeout(timeout_s):
                return self._read(await connection.call(request, weight=weight))
        except (TimeoutError, Unavailable, ValueError):
            connection.close()
            raise

    def _less_loaded_of_two(self) -> RpcConnection:
        there = [each for each in self._connections.values() if each.takes_calls]
        if not there:
            raise ConnectionRefusedError("not connected yet")
        two = random.sample(there, min(2, len(there)))
        return min(two, key=lambda each: each.load)

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._renew()
            except Exception as error:  # noqa: BLE001 — whatever it is: calls go another way, and it is tried again
                logger.debug("no direct connections (%s)", type(error).__name__)
            if await self._one_ends_within(FIND_PERIOD_S * random.uniform(0.5, 1)):  # noqa: S311 — spreads replicas
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S

    async def _renew(self) -> None:
        """Connect to the servers that are new, and retire the connections to those that are no more."""
        named = await self._find()
        for address in self._connections.keys() - named:
            self._connections.pop(address).retire()
        await asyncio.gather(*(self._connect(each) for each in named if each not in self._connections))

    async def _connect(self, address: Address) -> None:
        try:
            self._connections[address] = await connect(address)
        except (OSError, EOFError) as error:
            logger.debug("no direct connection to %s (%s)", address, type(error).__name__)

    async def _one_ends_within(self, time_s: float) -> bool:
        """Wait, and forget the connections that have ended; at once where there is none."""
        if not self._connections:
            return True
        ends = [each.ended for each in self._connections.values()]
        await asyncio.wait(ends, timeout=time_s, return_when=asyncio.FIRST_COMPLETED)
        ended = [address for address, each in self._connections.items() if each.ended.done()]
        for address in ended:
            del self._connections[address]
        return bool(ended)
