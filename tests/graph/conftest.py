"""The configuration that the graph tests change and deploy."""

from typing import Any

import pytest

from tests.graph.rollout import shipped
from tests.service import Service


@pytest.fixture
def config(service: Service) -> dict[str, Any]:
    """The shipped configuration, on the service's port."""
    return shipped(service)
