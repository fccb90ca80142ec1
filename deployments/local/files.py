"""Files a local run needs: inside the wheel, or in the checkout an editable install points at."""

from __future__ import annotations

from pathlib import Path

from deployments.core.errors import StartupError

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parent.parent
_IN_CHECKOUT = {"serve_config.yaml": _CHECKOUT / "serve_config.yaml", "redis": _CHECKOUT / "cluster" / "redis"}


def shipped(name: str) -> Path:
    """Where `serve_config.yaml` or the folder `redis` lies.

    Raises:
        StartupError: in neither place.
    """
    for place in (_HERE / "shipped" / name, _IN_CHECKOUT[name]):
        if place.exists():
            return place
    raise StartupError(f"{name} is missing from this installation; install intentgraph again")
