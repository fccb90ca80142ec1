"""The graph with a model that one text breaks for good, as a GPU that failed once fails for ever after."""

from collections.abc import Sequence
from typing import Any, NoReturn

from ray.serve import Application

from deployments import graph
from deployments.core.outcomes import Outcome
from deployments.core.settings import Settings
from deployments.model import Model

BREAKING = "break the device"


class Dead:
    """A runtime whose every pass raises."""

    name = "dead"

    def __call__(self, *_: Any) -> NoReturn:
        raise RuntimeError("device-side assert triggered")


class Breakable(Model):
    """The model, until it is asked about `BREAKING`."""

    async def _outcomes(self, texts: Sequence[str], left_s: float) -> list[Outcome]:
        if BREAKING in texts:
            self._classifier.runtime = Dead()
        return await super()._outcomes(texts, left_s)


def build(settings: Settings) -> Application:
    """The application, as `deployments.graph` builds it."""
    Breakable.__name__ = "Model"  # Serve names a deployment by it
    graph.Model = Breakable  # type: ignore[misc]
    return graph.build(settings)
