"""Whose key a request has, and which keys are in force after their file changed."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.core import key_ring
from deployments.core.access import Caller
from deployments.core.api_keys import KeysFile, changing, read
from deployments.core.errors import StartupError, Unauthorized
from deployments.core.key_ring import KeyRing

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def write(path: Path, content: KeysFile) -> None:
    with changing(path) as put:
        put(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A keys file, empty as yet."""
    write(tmp_path / "keys.json", KeysFile())
    return tmp_path / "keys.json"


def add(path: Path, name: str, *scopes: str) -> bytes:
    """Make a key; the header its holder sends."""
    content, key = read(path).with_new(name, scopes or ["classify"], NOW)
    write(path, content)
    return f"Bearer {key}".encode()


def revoke(path: Path, name: str) -> None:
    write(path, read(path).with_revoked(name, NOW))


def is_refused(ring: KeyRing, authorization: bytes | None) -> bool:
    try:
        ring.of(authorization)
    except Unauthorized:
        return True
    return False


def test_a_key_tells_its_caller(path: Path):
    """By name, with the scopes it was made with."""
    app, robot = add(path, "app", "classify", "feedback"), add(path, "robot", "admin")
    ring = KeyRing(path)

    assert ring.of(app) == Caller("app", frozenset({"classify", "feedback"}))
    assert ring.of(robot) == Caller("robot", frozenset({"admin"}))


def test_the_scheme_is_matched_in_any_case_and_blanks_do_no_harm(path: Path):
    """RFC 9110, section 11.1."""
    key = add(path, "app").removeprefix(b"Bearer ")
    ring = KeyRing(path)

    assert {ring.of(scheme + key + b" ").name for scheme in (b"bearer ", b"BEARER ", b"Bearer  ")} == {"app"}


@pytest.mark.parametrize("authorization", [None, b"", b"Basic YTpi", b"Bearer", b"ig_00000000_x", b"Bearerig_0_x"])
def test_a_request_without_a_bearer_token_has_sent_no_key(path: Path, authorization: bytes | None):
    """It is told how to send one."""
    with pytest.raises(Unauthorized, match="Authorization: Bearer ig_") as refusal:
        KeyRing(path).of(authorization)
    assert not refusal.value.sent


def wrong_keys(key: bytes) -> dict[str, bytes]:
    _, key_id, secret = key.split(b"_", 2)
    return {
        "nothing": b"",
        "one part": b"ig",
        "two parts": b"ig_" + key_id,
        "no secret": b"ig_" + key_id + b"_",
        "another prefix": b"xx_" + key_id + b"_" + secret,
        "another id": b"ig_ffffffff_" + secret,
        "an id in capitals": b"ig_" + key_id.upper() + b"G_" + secret,
        "the last character missing": key[:-1],
        "a character more": key + b"A",
        "the digest for the secret": b"ig_" + key_id + b"_" + hashlib.sha256(secret).hexdigest().encode(),
        "two keys": key + b" " + key,
        "not ASCII": b"ig_" + key_id + b"_\xff",
    }


@pytest.mark.parametrize("name", wrong_keys(b"ig_00000000_x"))
def test_a_wrong_key_is_refused_and_not_repeated(path: Path, name: str):
    """With the same words whatever is wrong: whether an id exists is nobody's business."""
    key = add(path, "app").removeprefix(b"Bearer ")

    with pytest.raises(Unauthorized) as refusal:
        KeyRing(path).of(b"Bearer " + wrong_keys(key)[name])
    assert refusal.value.sent
    assert refusal.value.detail == "the API key is not one of this service's, or is revoked"


@pytest.fixture(scope="module")
def ring_of_one(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """Of one key, that nobody knows any more."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write(path, KeysFile())
    add(path, "app", "admin")
    return KeyRing(path)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"Bearer ", b"bearer ig_", b"Bearer ig_00000000_"]))
def test_nobody_comes_in_by_chance(ring_of_one: KeyRing, rest: bytes, start: bytes):
    """Whatever bytes are sent, they are refused and nothing breaks."""
    assert is_refused(ring_of_one, start + rest)


def test_an_empty_secret_is_refused_even_where_its_digest_is_the_one_of_nobody(path: Path):
    """What an unknown id is compared with lets nobody in."""
    assert is_refused(KeyRing(path), b"Bearer ig_ffffffff_")


@pytest.mark.parametrize("known", [True, False])
def test_every_look_up_compares_once_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch, known: bool):
    """A known id and an unknown one take the same way."""
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return False

    key = add(path, "app")
    ring = KeyRing(path)
    monkeypatch.setattr(key_ring.hmac, "compare_digest", compare)

    assert is_refused(ring, key if known else b"Bearer ig_ffffffff_x")
    assert compared == [(64, 64)]


def test_a_new_key_comes_into_force_and_a_revoked_one_is_refused(path: Path):
    """At the next look at the file."""
    old = add(path, "old")
    ring = KeyRing(path)
    new = add(path, "new")
    revoke(path, "old")
    before = is_refused(ring, old), is_refused(ring, new)
    ring.look()

    assert before == (False, True)
    assert (is_refused(ring, old), is_refused(ring, new)) == (True, False)


def test_a_key_with_other_scopes_has_them_at_the_next_look(path: Path):
    """Whoever edits the file need not restart anything."""
    key = add(path, "app", "classify")
    ring = KeyRing(path)
    path.write_text(path.read_text().replace('"classify"', '"admin"'))
    ring.look()

    assert ring.of(key).scopes == {"admin"}


def broken(path: Path) -> None:
    path.write_text("{")


FAULTS: dict[str, Callable[[Path], None]] = {
    "broken": broken,
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_with_a_file_that_is_broken_or_gone_the_last_keys_stay_in_force(
    path: Path, caplog: pytest.LogCaptureFixture, name: str
):
    """One error in the log, not one a second."""
    key = add(path, "app")
    ring = KeyRing(path)
    FAULTS[name](path)
    for _ in range(3):
        ring.look()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]

    assert ring.of(key).name == "app"
    assert len(errors) == 1
    assert str(path) in errors[0].message
    assert "the keys that were read last stay in force" in errors[0].message


def test_a_file_that_is_whole_again_is_taken_over_and_the_next_fault_is_told_again(
    path: Path, caplog: pytest.LogCaptureFixture
):
    """Also one that is byte for byte what it was."""
    key = add(path, "app")
    ring, whole = KeyRing(path), path.read_text()
    for _ in range(2):
        broken(path)
        ring.look()
        path.write_text(whole)
        ring.look()

    assert ring.of(key).name == "app"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    assert "app" not in caplog.messages[-1]


def test_a_file_replaced_within_one_tick_of_the_clock_is_noticed(path: Path):
    """Of the same size and time: it is another file."""
    key = add(path, "app")
    ring, status = KeyRing(path), path.stat()
    other = path.with_name("other.json")
    other.write_text(path.read_text().replace('"app"', '"ppa"'))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    ring.look()

    assert ring.of(key).name == "ppa"


def test_an_unchanged_file_is_not_read_again(path: Path, caplog: pytest.LogCaptureFixture):
    """A look costs one system call."""
    caplog.set_level(logging.INFO)
    ring = KeyRing(path)
    ring.look()

    assert caplog.records == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_service_does_not_start_without_the_file_it_was_given(path: Path, name: str):
    """Else it would be open, or closed, by mistake."""
    FAULTS[name](path)

    with pytest.raises(StartupError, match=str(path)):
        KeyRing(path)


class FlakyPath(PosixPath):
    """Fails, when told to, as no file does."""

    fails = False

    def open(self, *arguments: object, **options: object) -> IO[bytes]:
        if FlakyPath.fails:
            raise RuntimeError("defect")
        return super().open(*arguments, **options)


async def test_the_file_is_looked_at_every_second_also_after_a_defect(path: Path, monkeypatch: pytest.MonkeyPatch):
    """By itself, once it follows: else revoked keys would stay in force unseen."""
    asleep: asyncio.Queue[float] = asyncio.Queue()
    woken = asyncio.Semaphore(0)

    async def sleep(duration_s: float) -> None:
        asleep.put_nowait(duration_s)
        await woken.acquire()

    async def look() -> float:
        """Let it look once; how long it sleeps then."""
        woken.release()
        return await asleep.get()

    ring = KeyRing(FlakyPath(path), sleep=sleep)
    ring.follow()
    key = add(path, "app")
    slept = [await asleep.get()]
    monkeypatch.setattr(FlakyPath, "fails", True)
    slept.append(await look())
    refused = is_refused(ring, key)
    monkeypatch.setattr(FlakyPath, "fails", False)
    slept.append(await look())

    assert refused
    assert ring.of(key).name == "app"
    assert slept == [1.0] * 3
