"""The notebook runs from top to bottom against a running service."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.service import ROOT, Service


def test_the_quickstart_runs(service: Service, monkeypatch: pytest.MonkeyPatch):
    """Its last cell asserts that the correction it made is served; an error in any cell fails here."""
    monkeypatch.setitem(os.environ, "INTENTS_URL", service.url)
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", service.state["gcs"])
    monkeypatch.setitem(os.environ, "RAY_AUTH_MODE", "disabled")
    notebook = nbformat.read(ROOT / "notebooks" / "01_quickstart.ipynb", as_version=4)
    executed = NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))

    assert "refused:" in printed
    assert "recorded" in printed
