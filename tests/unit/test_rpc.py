"""Calls over a connection of their own: each its own reply, strangers kept out, another server when one is gone."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from deployments.core import rpc
from deployments.core.errors import Unavailable
from deployments.core.rpc import (
    MAX_REQUEST_BYTES,
    REPLY,
    REQUEST,
    RETIRE,
    TOKEN_BYTES,
    VERSION,
    Address,
    RpcChannel,
    RpcServer,
    connect,
)
from tests.unit.test_corrections import until


class Echo:
    """Replies with its name and the request; to `wait` when it may, to `fail` and `break` not at all."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.may_go = asyncio.Event()
        self.asked: list[str] = []
        self.called_off = 0

    async def __call__(self, request: bytes) -> bytes:
        self.asked.append(request.decode())
        match request:
            case b"wait":
                try:
                    await self.may_go.wait()
                except asyncio.CancelledError:
                    self.called_off += 1
                    raise
            case b"fail":
                raise Unavailable("the store is away")
            case b"break":
                raise ZeroDivisionError(request[::-1])
        return self.name.encode() + request


class Replica(RpcServer):
    """A server that can end as a process does: nobody listens any more, and its connections break off."""

    def __init__(self, name: str = "") -> None:
        self.echo = Echo(name)
        super().__init__(self.echo)

    async def listen(self) -> Address:
        self.address = await self.start("127.0.0.1")
        return self.address

    def end(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._clients:
            writer.transport.abort()


class Replicas:
    """Names the replicas there are; counts how often it is asked, and may fail at that."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.error: Exception | None = None
        self.asked = 0

    async def __call__(self) -> list[Address]:
        self.asked += 1
        if self.error:
            raise self.error
        return [replica.address for replica in self.replicas]


@asynccontextmanager
async def connection(replica: Replica) -> AsyncIterator[rpc.RpcConnection]:
    made = await connect(await replica.listen())
    yield made
    made.close()
    replica.end()


@asynccontextmanager
async def stream_to(replica: Replica) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says nothing by itself."""
    address = await replica.listen()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    yield reader, writer
    writer.close()
    replica.end()


async def reply(channel: RpcChannel, request: bytes = b"") -> bytes:
    """The reply over a channel, as soon as it is connected."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await channel.choose().call(request)
            except ConnectionError:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def channel_to(*replicas: Replica) -> AsyncIterator[tuple[RpcChannel, Replicas]]:
    """A channel with a connection to each of them, and what names them."""
    for each in replicas:
        await each.listen()
    find = Replicas(*replicas)
    channel = RpcChannel(find)
    await until(lambda: len(channel._connections) == len(replicas))
    yield channel, find
    for each in replicas:
        each.end()


async def test_calls_overlap_and_each_has_its_own_reply():
    """The first one waits, those behind it do not; a reply of any size comes whole."""
    replica = Replica("a:")
    async with connection(replica) as made:
        waiting = asyncio.create_task(made.call(b"wait"))
        long = b"x" * 900_000

        assert await asyncio.gather(*(made.call(b"%d" % n) for n in range(100))) == [b"a:%d" % n for n in range(100)]
        assert await made.call(long) == b"a:" + long
        assert not waiting.done()
        replica.echo.may_go.set()
        assert await waiting == b"a:wait"


async def test_a_call_that_is_cancelled_is_called_off_and_ends_no_other():
    """What is computed for nobody delays the others."""
    replica = Replica()
    async with connection(replica) as made:
        leaving, staying = (asyncio.create_task(made.call(b"wait")) for _ in range(2))
        await until(lambda: len(replica.echo.asked) == 2)
        leaving.cancel()
        await until(lambda: replica.echo.called_off)
        replica.echo.may_go.set()

        assert replica.echo.called_off == 1

        assert await staying == b"wait"
        assert await made.call(b"next") == b"next"


async def test_a_failed_call_is_told_and_ends_no_other(caplog: pytest.LogCaptureFixture):
    """In the service's terms; what was not foreseen is in the log of who failed, and not in the reply.

    The log has no word of the request, which may be a user's text.
    """
    replica = Replica()
    async with connection(replica) as made:
        with pytest.raises(Unavailable, match="the store is away"):
            await made.call(b"fail")
        with pytest.raises(Unavailable, match="has the cause"):
            await made.call(b"break")
        assert "ZeroDivisionError" in caplog.text
        assert "kaerb" not in caplog.text
        assert await made.call(b"next") == b"next"


@pytest.mark.parametrize(
    "token", [bytes(TOKEN_BYTES), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["token", "http"]
)
async def test_a_stranger_is_hung_up_on(token: bytes):
    """Before anything that it sends is a request; and whoever has the token is served beside it."""
    replica = Replica()
    async with connection(replica) as made:
        reader, writer = await asyncio.open_connection(made.address.host, made.address.port)
        writer.write(token + REQUEST.pack(1, 0, False) + b"x")

        assert await reader.read() == b""
        assert replica.echo.asked == []
        assert await made.call(b"known") == b"known"
        writer.close()


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """Or a port scanner would hold a connection for ever."""
    monkeypatch.setattr(rpc, "CONNECT_TIMEOUT_S", 0.05)
    async with stream_to(Replica()) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_request_beyond_the_bound_is_hung_up_on():
    """Unread: it has nothing to do with what ours send."""
    replica = Replica()
    async with connection(replica) as made:
        with pytest.raises(ConnectionError):
            await made.call(bytes(MAX_REQUEST_BYTES + 1))
        assert replica.echo.asked == []


async def test_a_wrong_token_connects_nobody():
    """The client sees the end of the connection."""
    replica = Replica()
    address = await replica.listen()

    with pytest.raises(EOFError):
        await connect(Address(address.host, address.port, bytes(TOKEN_BYTES)))
    replica.end()


async def test_the_token_is_shown_by_no_repr():
    """Addresses may reach a log."""
    replica = Replica()
    address = await replica.listen()

    assert repr(address.token) not in repr(address)
    replica.end()


async def test_who_waits_when_the_server_ends_is_told_at_once():
    """And so is who calls later."""
    replica = Replica()
    async with connection(replica) as made:
        waiting = asyncio.create_task(made.call(b"wait"))
        await until(lambda: replica.echo.asked)
        replica.end()

        for call in (waiting, made.call(b"later")):
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(call, 5)


async def test_a_channel_finds_another_replica_when_one_ends():
    """Until then its calls fail at once, to be made in another way."""
    first, second = Replica("first "), Replica("second ")
    await first.listen()
    await second.listen()
    find = Replicas(first)
    channel = RpcChannel(find)

    with pytest.raises(ConnectionError):
        await channel.choose().call(b"x")
    assert await reply(channel, b"x") == b"first x"
    first.end()
    find.replicas[:] = [second]
    assert await reply(channel, b"x") == b"second x"
    second.end()


async def test_a_channel_asks_on_while_there_is_no_replica():
    """Whatever asking raises."""
    replica = Replica()
    await replica.listen()
    find = Replicas()
    channel = RpcChannel(find)
    await until(lambda: find.asked >= 2)
    find.error = Unavailable("the cache is away")
    await until(lambda: find.asked >= 4)
    find.error = None
    find.replicas.append(replica)

    assert await reply(channel, b"x") == b"x"
    replica.end()


async def test_a_connection_that_is_reset_is_told_as_such():
    """In whatever turn of the event loop a call meets it; a killed process's kernel does so."""
    for _ in range(20):
        replica = Replica()
        made = await connect(await replica.listen())
        calls = [asyncio.create_task(made.call(b"wait"))]
        await until(lambda replica=replica: replica.echo.asked)
        for writer in replica._clients:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        replica.end()
        for _ in range(50):
            calls.append(asyncio.create_task(made.call(b"x")))
            await asyncio.sleep(0)

        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert {isinstance(each, ConnectionError) for each in outcomes} == {True}, outcomes


async def test_a_connection_that_breaks_off_is_made_again():
    """To the same replica, if that is the one that is named; and asking pauses, however often it breaks."""
    replica = Replica()
    await replica.listen()
    find = Replicas(replica)
    channel = RpcChannel(find)
    for _ in range(2):
        assert await reply(channel, b"x") == b"x"
        (broken,) = channel._connections.values()
        broken.close()
        await until(lambda broken=broken: broken not in channel._connections.values())

    assert await reply(channel, b"x") == b"x"
    assert find.asked == 3
    replica.end()


async def test_a_call_goes_to_the_less_loaded_of_two():
    """By the weight of what is under way, and not by how much it is."""
    first, second = Replica("first "), Replica("second ")
    async with channel_to(first, second) as (channel, _):
        calls = [asyncio.create_task(channel.choose().call(b"wait", weight=9))]
        for _ in range(5):
            await asyncio.sleep(0)
            calls.append(asyncio.create_task(channel.choose().call(b"wait")))
        await until(lambda: len(first.echo.asked + second.echo.asked) == 6)

        assert sorted(len(each.echo.asked) for each in (first, second)) == [1, 5]
        first.echo.may_go.set()
        second.echo.may_go.set()
        await asyncio.gather(*calls)
        assert [each.load for each in channel._connections.values()] == [0, 0]


async def test_idle_servers_share_what_comes():
    """One call at a time: none is less loaded, so chance decides."""
    first, second = Replica("first "), Replica("second ")
    async with channel_to(first, second) as (channel, _):
        for _ in range(40):
            await channel.choose().call(b"x")

        assert min(len(each.echo.asked) for each in (first, second)) > 5


async def two_calls(channel: RpcChannel) -> list[asyncio.Task[bytes]]:
    """One after the other, so to each of two servers one."""
    calls = []
    for _ in range(2):
        calls.append(asyncio.create_task(channel.choose().call(b"wait")))
        await asyncio.sleep(0)
    return calls


async def test_calls_go_on_where_one_of_two_servers_ends():
    """Only what was under way there fails, to be made again; that one is not chosen any more."""
    first, second = Replica("first "), Replica("second ")
    async with channel_to(first, second) as (channel, find):
        calls = await two_calls(channel)
        await until(lambda: first.echo.asked and second.echo.asked)
        find.replicas.remove(first)
        first.end()
        second.echo.may_go.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        assert b"second wait" in outcomes
        assert any(isinstance(each, ConnectionError) for each in outcomes)
        assert {await channel.choose().call(b"x") for _ in range(20)} == {b"second x"}


async def test_a_server_that_drains_answers_what_is_under_way_and_gets_no_more():
    """Its clients call others, though it is still named; it has drained when the last answer is out."""
    leaving, staying = Replica("leaving "), Replica("staying ")
    async with channel_to(leaving, staying) as (channel, _):
        calls = await two_calls(channel)
        await until(lambda: leaving.echo.asked and staying.echo.asked)
        draining = asyncio.create_task(leaving.drain())
        await until(lambda: sum(each.takes_calls for each in channel._connections.values()) == 1)

        assert {await channel.choose().call(b"x") for _ in range(20)} == {b"staying x"}
        assert not draining.done()
        leaving.echo.may_go.set()
        staying.echo.may_go.set()
        assert sorted(await asyncio.gather(*calls)) == [b"leaving wait", b"staying wait"]
        await asyncio.wait_for(draining, 5)
        with pytest.raises(OSError, match=r"refused|Connect"):
            await connect(leaving.address)


async def test_who_connects_while_a_server_drains_is_hung_up_on():
    """And told nothing before: it could not know that it is to call others."""
    replica = Replica()
    async with stream_to(replica) as (reader, writer):
        await until(lambda: replica._connected)
        draining = asyncio.create_task(replica.drain())
        await asyncio.sleep(0)
        writer.write(replica.address.token)

        assert await reader.read() == b""
        await asyncio.wait_for(draining, 1)


async def test_a_client_that_does_not_leave_holds_no_server_up(monkeypatch: pytest.MonkeyPatch):
    """Its process may hang; it was told, and nothing is under way for it."""
    monkeypatch.setattr(rpc, "LEAVE_TIMEOUT_S", 0.05)
    replica = Replica()
    async with stream_to(replica) as (reader, writer):
        writer.write(replica.address.token)
        assert await reader.readexactly(len(VERSION)) == VERSION
        await asyncio.wait_for(replica.drain(), 1)

        assert await asyncio.wait_for(reader.readexactly(REPLY.size), 5) == REPLY.pack(0, RETIRE, False)


async def test_a_server_without_clients_has_drained():
    """Also one that never listened; nobody can connect to it."""
    await asyncio.wait_for(Replica().drain(), 1)
    replica = Replica()
    address = await replica.listen()
    await asyncio.wait_for(replica.drain(), 1)

    with pytest.raises(OSError, match=r"refused|Connect"):
        await connect(address)


async def test_a_channel_finds_who_came_later(monkeypatch: pytest.MonkeyPatch):
    """Without anything having happened to its connections."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.05)
    later = Replica("later ")
    await later.listen()
    async with channel_to(Replica("first ")) as (channel, find):
        find.replicas.append(later)
        await until(lambda: len(channel._connections) == 2)

        assert {await channel.choose().call(b"x") for _ in range(40)} == {b"first x", b"later x"}
    later.end()


async def test_a_server_that_owes_replies_and_is_silent_is_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """A process that hangs keeps its connections; who waits is told, and nobody else has to find out."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.05)
    monkeypatch.setattr(rpc, "MAX_SILENCE_S", 1.0)
    async with channel_to(Replica()) as (channel, find):
        connection = channel.choose()
        await connection.call(b"x")
        await asyncio.sleep(1.2)
        assert connection.takes_calls  # it owes nothing
        waiting = asyncio.create_task(connection.call(b"wait"))
        for _ in range(6):
            await asyncio.sleep(0.25)
            await connection.call(b"x")  # it is not silent
        assert not waiting.done()
        find.replicas.clear()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(ConnectionRefusedError):
            channel.choose()


async def test_a_server_whose_replies_take_long_is_not_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """It says that it lives, as one that hangs does not."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.05)
    monkeypatch.setattr(rpc, "MAX_SILENCE_S", 1.0)
    monkeypatch.setattr(rpc, "ALIVE_PERIOD_S", 0.2)
    async with channel_to(Replica()) as (channel, _):
        connection = channel.choose()
        waiting = asyncio.create_task(connection.call(b"wait"))
        await asyncio.sleep(2.0)
        assert not waiting.done()
        assert connection.takes_calls
        assert connection.silent_s < 1.0
        waiting.cancel()


async def test_callers_in_a_hurry_hide_no_server_that_hangs(monkeypatch: pytest.MonkeyPatch):
    """Each leaves before the server has been silent for long; one in order says that it has heard so."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.05)
    monkeypatch.setattr(rpc, "MAX_SILENCE_S", 0.5)
    replica = Replica()
    async with channel_to(replica) as (channel, find):
        connection = channel.choose()
        for _ in range(6):
            await leaves_after(0.15, connection)
        assert connection.takes_calls
        find.replicas.clear()
        for server in replica._clients:
            server.transport.pause_reading()
        for _ in range(30):
            with suppress(ConnectionError):
                await leaves_after(0.15, connection)
        assert not connection.takes_calls


async def leaves_after(time_s: float, connection: rpc.RpcConnection) -> None:
    """Ask for what is not answered, and leave."""
    with suppress(TimeoutError):
        async with asyncio.timeout(time_s):
            await connection.call(b"wait")


async def test_a_server_that_reads_nothing_gets_no_more_calls(monkeypatch: pytest.MonkeyPatch):
    """What it is sent would be kept here."""
    monkeypatch.setattr(rpc, "MAX_UNSENT_BYTES", 1)
    async with channel_to(Replica()) as (channel, _):
        connection = channel.choose()
        calls = [asyncio.create_task(connection.call(bytes(MAX_REQUEST_BYTES))) for _ in range(3)]
        await asyncio.sleep(0)

        with pytest.raises(ConnectionRefusedError):
            channel.choose()
        await asyncio.gather(*calls)
        assert channel.choose() is connection


async def test_a_server_of_another_version_is_not_called(monkeypatch: pytest.MonkeyPatch):
    """While an update rolls out there are both; each would misread the other."""

    async def greets_otherwise(_self: RpcServer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00")

    monkeypatch.setattr(RpcServer, "_serve", greets_otherwise)
    replica = Replica()
    address = await replica.listen()

    with pytest.raises(ConnectionRefusedError, match="version"):
        await connect(address)
    replica.end()


async def test_a_channel_keeps_its_connection_while_the_same_replica_is_named(monkeypatch: pytest.MonkeyPatch):
    """Asking again costs a handle call and nothing else, also one that fails."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.02)
    async with channel_to(Replica()) as (channel, find):
        (kept,) = channel._connections.values()
        asked = find.asked
        await until(lambda: find.asked >= asked + 3)
        find.error = Unavailable("the cache is away")
        await until(lambda: find.asked >= asked + 6)

        assert list(channel._connections.values()) == [kept]


async def test_a_server_that_cannot_be_reached_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch):
    """It may be on its way out and still be named."""
    monkeypatch.setattr(rpc, "FIND_PERIOD_S", 0.05)
    gone = Replica()
    await gone.listen()
    gone.end()
    async with channel_to(Replica("there ")) as (channel, find):
        asked = find.asked
        find.replicas.insert(0, gone)
        await until(lambda: find.asked >= asked + 3)

        assert await channel.choose().call(b"x") == b"there x"
