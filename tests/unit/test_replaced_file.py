"""A file that is replaced at once."""

import os
from pathlib import Path

import pytest

from deployments.core.replaced_file import replacing


def test_a_draft_takes_the_files_place_at_the_end(tmp_path: Path):
    """Until then the file is as it was; it is its writer's alone, whoever could read the one before."""
    file = tmp_path / "file"
    file.write_text("before")
    file.chmod(0o644)
    with replacing(file) as draft:
        draft.write(b"after")
        assert file.read_text() == "before"

    assert (file.read_text(), file.stat().st_mode & 0o777) == ("after", 0o600)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_file_and_no_draft(tmp_path: Path, failure: type[BaseException]):
    """Also where it is stopped."""
    file = tmp_path / "file"
    file.write_text("before")
    with pytest.raises(failure), replacing(file):
        raise failure

    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_is_taken_by_a_folder_keeps_no_draft(tmp_path: Path):
    """The last step fails."""
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "file"):
        pass

    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_file_and_then_its_place_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a file is its folder's: a crash would else bring back the one before, with a revoked key."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    with replacing(tmp_path / "file"):
        pass

    draft, folder = synced
    assert (draft.parent, folder) == (tmp_path, tmp_path)
    assert not draft.exists()
