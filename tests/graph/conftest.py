"""The configuration that the graph tests change and deploy."""

from typing import Any

import pytest
import yaml

from tests.service import ROOT, Service


@pytest.fixture
def config(service: Service) -> dict[str, Any]:
    """The shipped configuration, on the service's port."""
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    shipped["http_options"]["port"] = service.port
    return shipped
