"""The service that a measurement starts for itself."""

import re
import tempfile
from pathlib import Path

import pytest

from loadgen.load import LoadError
from loadgen.local_service import LocalService


def test_a_service_that_does_not_start_says_why_and_keeps_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the log, so it must be there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with (
        pytest.raises(LoadError, match=r"has no `applications:`.* all it said is in ") as failed,
        LocalService(config={"applications": []}),
    ):
        pass

    (log,) = re.findall(r"\S+up\.log", str(failed.value))
    assert "no `applications:`" in Path(log).read_text()
