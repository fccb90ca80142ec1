"""The proxy that makes a store slow, broken or a liar, against real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from loadgen.faulty_proxy import GARBAGE, LOOPBACK, FaultyProxy, Mode, ProxyThread

DELAY_S = 0.05


class Store:
    """Answers each line with itself, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.asked.append(line)
            writer.write(b"+" + line)
        writer.close()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def proxy(store: Store) -> AsyncIterator[FaultyProxy]:
    async with await asyncio.start_server(store.serve, LOOPBACK, 0) as server:
        proxy = FaultyProxy(server.sockets[0].getsockname()[1], delay_s=DELAY_S)
        await proxy.start()
        yield proxy
        await proxy.close()


class Caller:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, proxy: FaultyProxy) -> "Caller":
        return cls(*await asyncio.open_connection(LOOPBACK, proxy.port))

    async def ask(self, line: bytes = b"PING\r\n") -> bytes:
        self._writer.write(line)
        return await asyncio.wait_for(self._reader.read(1024), 5)

    async def aclose(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
async def caller(proxy: FaultyProxy) -> AsyncIterator[Caller]:
    async with aclosing(await Caller.to(proxy)) as caller:
        yield caller


async def test_it_passes_questions_and_replies_on(caller: Caller, store: Store):
    assert await caller.ask(b"GET a\r\n") == b"+GET a\r\n"
    assert store.asked == [b"GET a\r\n"]


async def test_each_reply_is_held_back(proxy: FaultyProxy, caller: Caller):
    await caller.ask()
    await proxy.turn(Mode.DELAY)
    started_s = time.monotonic()
    replies = [await caller.ask(), await caller.ask()]

    assert replies == [b"+PING\r\n"] * 2
    assert time.monotonic() - started_s >= 2 * DELAY_S


async def test_open_connections_are_reset_and_so_are_new_ones(proxy: FaultyProxy, caller: Caller):
    """With RST: an end that comes with FIN reads as a polite close."""
    await caller.ask()
    await proxy.turn(Mode.RESET)

    with pytest.raises(ConnectionResetError):
        await caller.ask()
    async with aclosing(await Caller.to(proxy)) as another:
        with pytest.raises(ConnectionResetError):
            await another.ask()


async def test_garbage_comes_in_every_kind_and_the_store_is_not_asked(proxy: FaultyProxy, caller: Caller, store: Store):
    await proxy.turn(Mode.GARBAGE)
    replies = [await caller.ask() for _ in GARBAGE]

    assert replies == list(GARBAGE)
    assert store.asked == []


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.PASS])
async def test_all_is_well_again_afterwards(proxy: FaultyProxy, mode: Mode):
    await proxy.turn(mode)
    await proxy.turn(Mode.PASS)

    async with aclosing(await Caller.to(proxy)) as caller:
        assert await caller.ask() == b"+PING\r\n"


async def test_a_store_that_is_away_is_a_reset(unused_tcp_port: int):
    """Not a connection that stays silent."""
    proxy = FaultyProxy(unused_tcp_port)
    await proxy.start()

    async with aclosing(await Caller.to(proxy)) as caller:
        with pytest.raises(ConnectionResetError):
            await caller.ask()
    await proxy.close()


async def test_closing_cuts_who_is_connected(proxy: FaultyProxy, caller: Caller):
    await caller.ask()
    await proxy.close()

    assert await caller.ask() == b""


def test_a_program_without_an_event_loop_has_it_in_a_thread(unused_tcp_port: int):
    """The thread ends with the block."""
    with ProxyThread(unused_tcp_port) as proxy:
        proxy.turn(Mode.RESET)
        url = proxy.url

    assert url.startswith(f"redis://{LOOPBACK}:")
    assert not proxy._thread.is_alive()
