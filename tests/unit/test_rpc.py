"""Calls over a connection of their own: each its own reply, strangers kept out, another server when one is gone."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deployments.core import rpc
from deployments.core.errors import Unavailable
from deployments.core.rpc import MAX_REQUEST_BYTES, REQUEST, TOKEN_BYTES, Address, RpcChannel, RpcServer, connect
from tests.unit.test_corrections import until


class Echo:
    """Replies with its name and the request; to `wait` when it may, to `fail` and `break` not at all."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.may_go = asyncio.Event()
        self.asked: list[str] = []

    async def __call__(self, request: bytes) -> bytes:
        self.asked.append(request.decode())
        match request:
            case b"wait":
                await self.may_go.wait()
            case b"fail":
                raise Unavailable("the store is away")
            case b"break":
                raise ZeroDivisionError
        return self.name.encode() + request


class Replica(RpcServer):
    """A server that can end as a process does: nobody listens any more, and its connections break off."""

    def __init__(self, name: str = "") -> None:
        self.echo = Echo(name)
        self._writers: list[asyncio.StreamWriter] = []
        super().__init__(self.echo)

    async def listen(self) -> Address:
        self.address = await self.start("127.0.0.1")
        return self.address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await super()._serve(reader, writer)

    def end(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


class Replicas:
    """Names the replica that is to be called now, if any; counts how often it is asked, and may fail at that."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.error: Exception | None = None
        self.asked = 0

    async def __call__(self) -> Address | None:
        self.asked += 1
        if self.error:
            raise self.error
        return self.replicas[0].address if self.replicas else None


@asynccontextmanager
async def connection(replica: Replica) -> AsyncIterator[rpc.RpcConnection]:
    made = await connect(await replica.listen())
    yield made
    made.close()
    replica.end()


async def reply(channel: RpcChannel[bytes], request: bytes = b"") -> bytes:
    """The reply over a channel, as soon as it is connected."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await channel.call(request, 5)
            except ConnectionError:
                await asyncio.sleep(0.01)


async def connected_to_the_first_of_two() -> tuple[Replica, Replica, Replicas, RpcChannel[bytes]]:
    """Two replicas, what names the first of them, and a channel to it."""
    replicas = Replica("first "), Replica("second ")
    for each in replicas:
        await each.listen()
    find = Replicas(*replicas)
    channel = RpcChannel(find, bytes)
    await reply(channel)
    return *replicas, find, channel


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


async def test_a_call_that_is_cancelled_ends_no_other():
    """Its reply comes and is nobody's."""
    replica = Replica()
    async with connection(replica) as made:
        leaving, staying = (asyncio.create_task(made.call(b"wait")) for _ in range(2))
        await until(lambda: len(replica.echo.asked) == 2)
        leaving.cancel()
        replica.echo.may_go.set()

        assert await staying == b"wait"
        assert await made.call(b"next") == b"next"


async def test_a_failed_call_is_told_and_ends_no_other():
    """In the service's terms; what was not foreseen is in the log of who failed, and not in the reply."""
    replica = Replica()
    async with connection(replica) as made:
        with pytest.raises(Unavailable, match="the store is away"):
            await made.call(b"fail")
        with pytest.raises(Unavailable, match="has the cause"):
            await made.call(b"break")
        assert await made.call(b"next") == b"next"


@pytest.mark.parametrize(
    "token", [bytes(TOKEN_BYTES), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["token", "http"]
)
async def test_a_stranger_is_hung_up_on(token: bytes):
    """Before anything that it sends is a request; and whoever has the token is served beside it."""
    replica = Replica()
    async with connection(replica) as made:
        reader, writer = await asyncio.open_connection(made.address.host, made.address.port)
        writer.write(token + REQUEST.pack(1, 0) + b"x")

        assert await reader.read() == b""
        assert replica.echo.asked == []
        assert await made.call(b"known") == b"known"
        writer.close()


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch):
    """Or a port scanner would hold a connection for ever."""
    monkeypatch.setattr(rpc, "CONNECT_TIMEOUT_S", 0.05)
    replica = Replica()
    address = await replica.listen()
    reader, writer = await asyncio.open_connection(address.host, address.port)

    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    replica.end()


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
    find = Replicas(first, second)
    channel = RpcChannel(find, bytes)

    with pytest.raises(ConnectionError):
        await channel.call(b"x", 5)
    assert await reply(channel, b"x") == b"first x"
    first.end()
    find.replicas.remove(first)
    assert await reply(channel, b"x") == b"second x"
    second.end()


async def test_a_channel_asks_on_while_there_is_no_replica():
    """Whatever asking raises."""
    replica = Replica()
    await replica.listen()
    find = Replicas()
    channel = RpcChannel(find, bytes)
    await until(lambda: find.asked >= 2)
    find.error = Unavailable("the cache is away")
    await until(lambda: find.asked >= 4)
    find.error = None
    find.replicas.append(replica)

    assert await reply(channel, b"x") == b"x"
    replica.end()


def upper(reply: bytes) -> bytes:
    """A reading that fails for what is not in capitals."""
    if not reply.isupper():
        raise ValueError(reply)
    return reply


@pytest.mark.parametrize(
    ("request_", "error"),
    [(b"wait", TimeoutError), (b"fail", Unavailable), (b"small", ValueError)],
    ids=["late", "failed", "unread"],
)
async def test_a_server_of_no_use_is_hung_up_on(request_: bytes, error: type[Exception]):
    """The next connection may be to another."""
    bad, good = Replica("BAD "), Replica("GOOD ")
    await bad.listen()
    await good.listen()
    find = Replicas(bad, good)
    channel = RpcChannel(find, upper)
    assert await reply(channel, b"X") == b"BAD X"
    find.replicas.remove(bad)

    with pytest.raises(error):
        await channel.call(request_, 0.05)
    assert await reply(channel, b"X") == b"GOOD X"
    bad.end()
    good.end()


async def test_a_connection_that_is_reset_is_told_as_such():
    """In whatever turn of the event loop a call meets it; a killed process's kernel does so."""
    for _ in range(20):
        replica = Replica()
        made = await connect(await replica.listen())
        calls = [asyncio.create_task(made.call(b"wait"))]
        await until(lambda replica=replica: replica.echo.asked)
        for writer in replica._writers:
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
    channel = RpcChannel(find, bytes)
    for _ in range(2):
        assert await reply(channel, b"x") == b"x"
        broken = channel._connection
        assert broken
        broken.close()
        await until(lambda broken=broken: channel._connection is not broken)

    assert await reply(channel, b"x") == b"x"
    assert find.asked == 3
    replica.end()


async def test_a_channel_moves_to_the_replica_that_is_named_now(monkeypatch: pytest.MonkeyPatch):
    """What is under way on the connection before is answered there, and then that is closed."""
    monkeypatch.setattr(rpc, "REDIAL_S", 0.05)
    first, second, find, channel = await connected_to_the_first_of_two()
    before = channel._connection
    assert before
    under_way = asyncio.create_task(channel.call(b"wait", 5))
    await asyncio.sleep(0)
    find.replicas.remove(first)
    await until(lambda: channel._connection is not before)
    assert await reply(channel, b"x") == b"second x"

    assert not under_way.done()
    assert not before.ended.done()
    first.echo.may_go.set()
    assert await under_way == b"first wait"
    await asyncio.wait([before.ended], timeout=5)
    assert before.ended.done()
    first.end()
    second.end()


async def test_a_call_that_fails_where_it_was_made_leaves_the_next_connection_alone(monkeypatch: pytest.MonkeyPatch):
    """What came of a replica that is left already says nothing of the other."""
    monkeypatch.setattr(rpc, "REDIAL_S", 0.05)
    first, second, find, channel = await connected_to_the_first_of_two()
    before = channel._connection
    late = asyncio.create_task(channel.call(b"wait", 0.5))
    await asyncio.sleep(0)
    find.replicas.remove(first)
    await until(lambda: channel._connection is not before)
    after = channel._connection
    assert after

    with pytest.raises(TimeoutError):
        await late
    assert await channel.call(b"x", 5) == b"second x"
    assert not after.ended.done()
    first.end()
    second.end()


async def test_a_channel_keeps_its_connection_while_the_same_replica_is_named(monkeypatch: pytest.MonkeyPatch):
    """Asking again costs a handle call and nothing else, also one that fails."""
    monkeypatch.setattr(rpc, "REDIAL_S", 0.02)
    replica = Replica()
    await replica.listen()
    find = Replicas(replica)
    channel = RpcChannel(find, bytes)
    await reply(channel)
    kept = channel._connection
    asked = find.asked
    await until(lambda: find.asked >= asked + 3)
    find.error = Unavailable("the cache is away")
    await until(lambda: find.asked >= asked + 6)

    assert channel._connection is kept
    replica.end()
