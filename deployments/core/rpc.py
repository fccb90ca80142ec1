"""Calls from one replica to another over a TCP connection of their own.

A Serve handle routes, balances and retries, and for a look-up that is most of its cost (2.4 ms, against 0.8 over this).
So a handle finds the replicas, and makes the calls while there is no connection; the connections carry the others.

    client ── token ──▶ server                                    once; a stranger, who has none, is hung up on
    client ◀── version ── server                                  of what follows; another one is hung up on, too
    client ── length, number, called off?, request ──▶ server     calls overlap; who does not wait any more says so
    client ◀── length, number, failed?, reply ── server           as replies are ready; one to what is called off, too;
                                                                  number `RETIRE`: call others
                                                                  number `ALIVE`: a reply takes its time

What requests and replies say is their owners'. Nothing is unpickled.
"""

import asyncio
import contextvars
import hmac
import itertools
import logging
import math
import random
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from deployments.core.errors import IntentGraphError, Internal, Unavailable, withheld

REQUEST = struct.Struct(">II?")
REPLY = struct.Struct(">II?")
RETIRE = 2**32 - 1
ALIVE = RETIRE - 1
"""Numbers that no call has."""
TOKEN_BYTES = 32
VERSION = b"\x03"
"""Raise it with any change of what travels, requests and replies too: replicas of two versions then call by handle."""
MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Beyond it the other side is not one of ours: a hundred texts of 5,000 characters are 3 MB, were each one escaped."""
MAX_UNSENT_BYTES = 4 * 1024 * 1024
"""From here on a server that does not read is called no more."""
MAX_SILENCE_S = 10.0
"""A server that owes replies and sends nothing for so long is hung up on: it hangs, or its machine is gone."""
ALIVE_PERIOD_S = 2.0
"""So often a server that owes replies says that it lives: a hundred long texts take ten seconds and more on a slow
processor."""
CONNECT_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 2.0
"""Clients of a server that drains have left by then, or wait for answers, or hang themselves."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
"""Between attempts to connect; meanwhile calls go by handle, which is slower and nothing else."""
FIND_PERIOD_S = 3.0
"""So often at least a channel asks whom to call: a replica that came later is idle until then. Each time costs who asks
and who is asked for 2 ms."""

logger = logging.getLogger(__name__)


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
        self._connected: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._is_draining = False

    async def start(self, host: str) -> Address:
        """Listen on a free port of `host`. Raises OSError."""
        self._server = await asyncio.start_server(self._welcome, host, 0)
        return Address(host, self._server.sockets[0].getsockname()[1], self._token)

    async def drain(self) -> None:
        """Take nobody new, send the others to other servers, and return when whatever was under way is answered."""
        self._is_draining = True
        if self._server:
            self._server.close()
        for writer in self._clients:
            if not writer.is_closing():
                writer.write(REPLY.pack(0, RETIRE, False))
        if self._connected:
            await asyncio.wait(self._connected, timeout=LEAVE_TIMEOUT_S)
        while self._answering:
            await asyncio.wait(self._answering)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(self._serve(reader, writer))
        self._connected.add(client)
        client.add_done_callback(self._connected.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls: dict[int, asyncio.Task[None]] = {}
        signs_of_life = asyncio.create_task(_show_life(calls, writer))
        try:
            _watch(writer)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                token = await reader.readexactly(TOKEN_BYTES)
            if not hmac.compare_digest(token, self._token):
                logger.debug("hung up on a stranger")  # who may come as often as they like: no line for each
                return
            if self._is_draining or writer.is_closing():
                return
            writer.write(VERSION)
            self._clients.add(writer)
            while True:
                size, number, is_called_off = REQUEST.unpack(await reader.readexactly(REQUEST.size))
                if size > MAX_REQUEST_BYTES:
                    logger.warning("hung up on a caller whose request has %d bytes", size)
                    return
                request = await reader.readexactly(size)
                if not is_called_off:
                    call = calls[number] = asyncio.create_task(self._reply(number, request, writer))
                    self._answering.add(call)
                    call.add_done_callback(self._answering.discard)
                    call.add_done_callback(partial(_forget, calls, number))
                    continue
                if number in calls:
                    calls[number].cancel()
                if not writer.is_closing():  # uvloop raises RuntimeError for a write to what is closing
                    writer.write(REPLY.pack(0, number, True))  # a server that hangs does not even say this
        except (OSError, EOFError):
            pass  # the caller left, or said nothing
        finally:
            signs_of_life.cancel()
            self._clients.discard(writer)
            for call in calls.values():
                call.cancel()
            writer.close()

    async def _reply(self, number: int, request: bytes, writer: asyncio.StreamWriter) -> None:
        failed = False
        try:
            reply = await self._answer(request)
        except Exception as error:
            if not isinstance(error, IntentGraphError):
                logger.error("a call failed", exc_info=withheld(error))  # noqa: TRY400 — its message may quote a text
                error = Internal("the call failed; the log of the replica that answered it has the cause")
            failed, reply = True, error.detail.encode()
        if not writer.is_closing():  # as above
            writer.write(REPLY.pack(len(reply), number, failed) + reply)


async def _show_life(calls: Collection[int], writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(ALIVE_PERIOD_S)
        if calls and not writer.is_closing():  # as above
            writer.write(REPLY.pack(0, ALIVE, False))


def _forget(calls: dict[int, asyncio.Task[None]], number: int, _call: asyncio.Task[None]) -> None:
    del calls[number]


def _watch(writer: asyncio.StreamWriter) -> None:
    """Have the kernel find out when the other side's machine is gone: it says so to nobody."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000)):
        if hasattr(socket, option):  # macOS calls some otherwise
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class RpcConnection:
    """The client's end of one connection. Made by `connect`; ends with either side, and stays so."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._is_retired = False
        self._owes_since_s = math.inf
        self.load = 0
        # In nobody's context: Serve cancels what an ended request left.
        self.ended = asyncio.create_task(self._receive(), context=contextvars.Context())

    @property
    def takes_calls(self) -> bool:
        """Whether it has neither ended nor been retired by the server, which reads what it is sent."""
        if self._is_retired or self.has_ended:
            return False
        return self._writer.transport.get_write_buffer_size() < MAX_UNSENT_BYTES

    @property
    def silent_s(self) -> float:
        """How long the server has owed a reply and sent nothing, in seconds; below 0 when it owes none."""
        return asyncio.get_running_loop().time() - self._owes_since_s

    @property
    def has_ended(self) -> bool:
        """Whether it carries nothing any more."""
        return self.ended.done() or self._writer.is_closing()  # closing: as in the server

    async def call(self, request: bytes, *, weight: int = 1) -> bytes:
        """The reply to a request. Cancelled, it calls the request off. `weight` counts as `load` until the reply.

        Raises:
            ConnectionError: the connection ended; whether the request was answered is not known.
            Unavailable: the other side could not answer it.
        """
        if self.has_ended:
            raise ConnectionResetError("the connection has ended")
        number = next(self._numbers) % ALIVE
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._owes_since_s = min(self._owes_since_s, asyncio.get_running_loop().time())
        self._waiting[number] = reply
        self.load += weight
        try:
            self._writer.write(REQUEST.pack(len(request), number, False) + request)
            return await reply
        finally:
            self.load -= weight
            self._waiting.pop(number, None)
            if reply.cancelled() and not self.has_ended:
                self._writer.write(REQUEST.pack(0, number, True))
            if self._is_retired and not self._waiting:
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
                reply = self._waiting.pop(number, None)
                self._owes_since_s = asyncio.get_running_loop().time() if self._waiting else math.inf
                if number == RETIRE:
                    self._is_retired = True  # and closed after the last reply
                    if not self._waiting:
                        return
                if reply is None or reply.done():
                    continue  # its caller did not wait, or it is `ALIVE`
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
        self._writer.transport.abort()  # closed, it would keep what a server that hangs has not read


async def connect(address: Address) -> RpcConnection:
    """Connect to a server. Raises OSError (`TimeoutError` too), or EOFError when it hangs up."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            _watch(writer)
            writer.write(address.token)
            version = await reader.readexactly(len(VERSION))
        except BaseException:
            writer.close()
            raise
    if version != VERSION:
        writer.close()
        raise ConnectionRefusedError("the server speaks another version")
    return RpcConnection(address, reader, writer)


class RpcChannel:
    """Keeps a connection to each server that `find` names: made in the background, and anew when one ends.

    Which servers are no more, the connections tell. One that owes replies and is silent for `MAX_SILENCE_S` is hung up
    on. Make it in a coroutine: a task here begins at once.

    Args:
        find: Gives the addresses of servers there are at present. May raise.
    """

    def __init__(self, find: Callable[[], Awaitable[Collection[Address]]]) -> None:
        self._find = find
        self._connections: dict[Address, RpcConnection] = {}
        self._keeping = asyncio.create_task(self._keep(), context=contextvars.Context())

    def choose(self) -> RpcConnection:
        """The connection for a call: the less loaded of two that are chosen at random.

        That balances nearly as well as the least loaded of all, and sends no herd to the one that came last
        (Mitzenmacher, The Power of Two Choices, 2001).

        Raises:
            ConnectionRefusedError: there is none at present.
        """
        there = [each for each in self._connections.values() if each.takes_calls]
        if not there:
            raise ConnectionRefusedError("not connected yet")
        two = random.sample(there, min(2, len(there)))
        return min(two, key=lambda each: each.load)

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                found = await self._find()
                await asyncio.gather(*(self._connect(each) for each in found if each not in self._connections))
            except Exception as error:  # noqa: BLE001 — whatever it is: calls go another way, and it is tried again
                logger.debug("no server found (%s)", type(error).__name__)
            if await self._one_is_gone_within(FIND_PERIOD_S * random.uniform(0.5, 1)):  # noqa: S311 — spreads replicas
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S

    async def _connect(self, address: Address) -> None:
        try:
            self._connections[address] = await connect(address)
        except (OSError, EOFError, RuntimeError) as error:  # RuntimeError: uvloop's, as above
            logger.debug("no direct connection to %s (%s)", address, type(error).__name__)

    async def _one_is_gone_within(self, time_s: float) -> bool:
        """Wait, then hang up on the silent and forget what has ended; at once where there is no connection."""
        if not self._connections:
            return True
        ends = [each.ended for each in self._connections.values()]
        await asyncio.wait(ends, timeout=time_s, return_when=asyncio.FIRST_COMPLETED)
        for each in self._connections.values():
            if each.silent_s > MAX_SILENCE_S:
                logger.warning("hung up on a replica at %s: silent for %.0f s", each.address, each.silent_s)
                each.close()
        gone = [address for address, each in self._connections.items() if each.has_ended]
        for address in gone:
            del self._connections[address]
        return bool(gone)
