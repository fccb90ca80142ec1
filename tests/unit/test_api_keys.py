"""The file of API keys: made, read and changed without ever having a key in it."""

import base64
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.core.access import SCOPES
from deployments.core.api_keys import ApiKey, KeysFile, changing, digest, read
from deployments.core.errors import StartupError

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
OTHER_USER = 65_500
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act for another user")
LATER = datetime(2026, 11, 28, 12, tzinfo=UTC)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True).filter(lambda name: name != "anyone")


def write(path: Path, content: KeysFile) -> None:
    with changing(path) as put:
        put(content)


def test_a_key_is_its_id_and_256_random_bits_of_which_the_file_has_the_digest_only(tmp_path: Path):
    """Whoever reads the file can call nothing with it."""
    content, key = KeysFile().with_new("app", ["classify"], NOW)
    write(tmp_path / "keys.json", content)
    prefix, key_id, secret = key.split("_", 2)

    assert (prefix, key_id) == ("ig", content.keys[0].id)
    assert len(base64.urlsafe_b64decode(f"{secret}=")) == 32
    assert content.keys[0].sha256 == digest(secret.encode())
    assert secret not in (tmp_path / "keys.json").read_text()


def test_no_two_keys_are_alike():
    """Neither their ids nor their secrets."""
    content, keys = KeysFile(), set()
    for number in range(50):
        content, key = content.with_new(f"n{number}", ["admin"], NOW)
        keys.add(key)

    assert len(keys) == len({key.id for key in content.keys}) == 50


@settings(deadline=None, max_examples=30)  # each is on disk before it is read
@given(st.dictionaries(NAMES, st.lists(st.sampled_from(SCOPES), min_size=1, max_size=6), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, list[str]]):
    """Names, scopes each once, and times."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    content = KeysFile()
    for name, scopes in wanted.items():
        content, _ = content.with_new(name, scopes, NOW)
    write(path, content)

    assert read(path) == content
    assert {key.name: set(key.scopes) for key in content.keys} == {name: set(held) for name, held in wanted.items()}
    assert all(len(set(key.scopes)) == len(key.scopes) for key in content.keys)


@contextmanager
def being(user: int) -> Iterator[None]:
    """Act as another user."""
    own = os.geteuid()
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(own)


def test_only_its_owner_may_read_the_file_and_nothing_else_is_left(tmp_path: Path):
    """A folder that is missing is made for the owner too."""
    path = tmp_path / "new" / "keys.json"
    write(path, KeysFile())
    write(path, KeysFile())

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_a_change_keeps_who_may_read_the_file(tmp_path: Path):
    """A service that reads it by its group does not hear of a revocation otherwise."""
    path = tmp_path / "keys.json"
    write(path, KeysFile())
    path.chmod(0o640)
    write(path, KeysFile())

    assert path.stat().st_mode & 0o777 == 0o640


@as_root
def test_a_change_keeps_whose_the_file_is(tmp_path: Path):
    """Root may revoke a key of a service that runs as another user."""
    path = tmp_path / "keys.json"
    write(path, KeysFile())
    os.chown(path, OTHER_USER, OTHER_USER + 1)
    write(path, KeysFile())

    assert (path.stat().st_uid, path.stat().st_gid) == (OTHER_USER, OTHER_USER + 1)


@as_root
def test_whoever_may_not_give_the_file_to_its_owner_is_told_and_changes_nothing():
    """In one line, with no draft left: a revocation that the service cannot read would be none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        write(path, KeysFile())
        path.chmod(0o644)
        path.parent.chmod(0o777)
        with being(OTHER_USER), pytest.raises(StartupError, match=r"as its owner's .* run this as that user"):
            write(path, KeysFile().with_new("app", ["admin"], NOW)[0])

        assert read(path) == KeysFile()
        assert list(path.parent.iterdir()) == [path]


def test_a_link_to_the_file_stays_one(tmp_path: Path):
    """The file it leads to is replaced."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "real" / "keys.json")
    write(link, KeysFile())

    assert link.is_symlink()
    assert read(tmp_path / "real" / "keys.json") == KeysFile()


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path):
    """Whoever has it open reads on in the old one."""
    path = tmp_path / "keys.json"
    write(path, KeysFile())
    with path.open() as open_before:
        write(path, KeysFile().with_new("app", ["admin"], NOW)[0])

        assert json.load(open_before)["keys"] == []
    assert [key.name for key in read(path).keys] == ["app"]


def test_changes_at_the_same_time_all_take_effect(tmp_path: Path):
    """The second waits for the first, reads what that wrote, and adds to it."""
    path = tmp_path / "keys.json"
    write(path, KeysFile())

    def add(name: str) -> None:
        with changing(path) as put:
            put(read(path).with_new(name, ["classify"], NOW)[0])

    threads = [threading.Thread(target=add, args=(f"n{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(read(path).keys) == 16


def test_a_name_is_given_once_and_never_again():
    """The log speaks of it, also after its key was revoked."""
    content, _ = KeysFile().with_new("app", ["classify"], NOW)

    for each in (content, content.with_revoked("app", LATER)):
        with pytest.raises(StartupError, match="is or was a key named app"):
            each.with_new("app", ["admin"], NOW)


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "-a", "x" * 65, "a\n", "anyone"])
def test_a_name_that_would_confuse_a_log_is_refused(name: str):
    """And the one that stands for whoever calls an open service."""
    with pytest.raises(StartupError, match="no such key can be made"):
        KeysFile().with_new(name, ["classify"], NOW)


def test_a_key_without_a_scope_or_with_an_unknown_one_is_refused():
    """It could do nothing, or nobody knows what."""
    for scopes in ([], ["root"]):
        with pytest.raises(StartupError, match="scopes"):
            KeysFile().with_new("app", scopes, NOW)


def test_a_revoked_key_stays_in_the_file_and_is_not_in_force():
    """With the time of its revocation; the others stay as they are."""
    content, _ = KeysFile().with_new("a", ["admin"], NOW)
    content, _ = content.with_new("b", ["admin"], NOW)
    revoked = content.with_revoked("a", LATER)

    assert [(key.name, key.revoked) for key in revoked.keys] == [("a", LATER), ("b", None)]
    assert [key.name for key in revoked.in_force] == ["b"]


def test_what_is_not_in_force_cannot_be_revoked():
    """A slip of the keyboard is told, and so is the second time."""
    content, _ = KeysFile().with_new("a", ["admin"], NOW)

    for each, name in ((content, "b"), (content.with_revoked("a", LATER), "a")):
        with pytest.raises(StartupError, match=f"no key named {name} is in force"):
            each.with_revoked(name, LATER)


ENTRY = {"id": "0" * 8, "name": "a", "scopes": ["admin"], "sha256": "0" * 64, "created": "2026-11-27T12:00:00Z"}
BROKEN = {
    "no JSON": "{",
    "nothing": "",
    "not UTF-8": b"\xff",
    "an array": "[]",
    "of another version": json.dumps({"version": 2, "keys": []}),
    "an unknown field": json.dumps({"keys": [ENTRY | {"secret": "s3cret"}]}),
    "no digest": json.dumps({"keys": [ENTRY | {"sha256": "s3cret"}]}),
    "an unknown scope": json.dumps({"keys": [ENTRY | {"scopes": ["root"]}]}),
    "no scope": json.dumps({"keys": [ENTRY | {"scopes": []}]}),
    "a name twice": json.dumps({"keys": [ENTRY, ENTRY | {"id": "1" * 8}]}),
    "an id twice": json.dumps({"keys": [ENTRY, ENTRY | {"name": "b"}]}),
    "everybody's name": json.dumps({"keys": [ENTRY | {"name": "anyone"}]}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it_and_repeats_nothing_of_it(tmp_path: Path, name: str):
    """What stands where a digest should may be a secret."""
    path, content = tmp_path / "keys.json", BROKEN[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(StartupError) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_a_missing_file_is_told_with_the_command_that_makes_one(tmp_path: Path):
    """And where it was looked for."""
    with pytest.raises(StartupError, match=rf"{tmp_path}/keys.json is missing; `intents keys add`"):
        read(tmp_path / "keys.json")


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path):
    """Such as one below a file."""
    (tmp_path / "file").touch()

    with pytest.raises(StartupError, match="cannot be used"), changing(tmp_path / "file" / "keys.json"):
        pass


def test_neither_a_key_nor_an_error_shows_a_digest():
    """It is no secret, but what stands there by mistake may be one."""
    content, _ = KeysFile().with_new("a", ["admin"], NOW)
    with pytest.raises(ValidationError) as refusal:
        ApiKey.model_validate(ENTRY | {"sha256": "s3cret"})

    assert content.keys[0].sha256 not in repr(content)
    assert "s3cret" not in str(refusal.value)
