"""The server that a measurement has to itself, and what can happen to it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from loadgen.load import LoadError
from loadgen.valkey import FEEDBACK, Valkey


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "store", tmp_path / "log") as server:
        yield server


@pytest.fixture
def client(server: Valkey) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None)) as client:
        client.set("kept", "1")
        yield client


@pytest.mark.parametrize(
    ("begin", "end", "error"),
    [
        (Valkey.kill, Valkey.start, redis.ConnectionError),
        (Valkey.freeze, Valkey.thaw, redis.TimeoutError),
        (Valkey.change_password, Valkey.take_password_back, redis.AuthenticationError),
        (Valkey.fill, Valkey.make_room, redis.exceptions.OutOfMemoryError),
    ],
)
def test_a_fault_is_seen_while_it_lasts_and_not_afterwards(
    server: Valkey, client: redis.Redis, begin: Callable[[Valkey], None], end: Callable[[Valkey], None], error: type
):
    begin(server)
    with pytest.raises(error):
        client.set("text", "prediction")
    end(server)

    assert client.set("text", "prediction")


def test_a_full_store_holds_nothing(server: Valkey, client: redis.Redis):
    """Or what is kept would still be found, and nobody would write."""
    server.fill()

    assert client.get("kept") is None


def test_a_log_survives_a_kill(tmp_path: Path):
    with (
        Valkey(tmp_path / "store", tmp_path / "log", FEEDBACK) as server,
        contextlib.closing(redis.Redis.from_url(server.url)) as client,
    ):
        client.set("kept", "1")
        server.kill()
        server.start()

        assert client.get("kept") == b"1"


def test_leaving_ends_a_frozen_one_too(tmp_path: Path):
    with Valkey(tmp_path / "store", tmp_path / "log") as server:
        server.freeze()
        process = server._process

    assert not process.is_running()


def test_what_an_operator_cannot_do_is_said(server: Valkey):
    server.kill()

    with pytest.raises(LoadError, match=f"{server.port}.* refuses what is to be done"):
        server.fill()
