"""BentoML with its own adaptive batching in front of the encoder; no cache.

Run with `bentoml serve servers.bentoml_service:Classifier`; its knobs come from the environment, since a service's
options are read where its class is defined.
"""

# No postponed annotations: BentoML reads those of `classify` where they stand.
import os
from typing import Annotated

import bentoml  # type: ignore[import-not-found]
from pydantic import BeforeValidator

from .encoder import Answer, Encoder

PATH = "/api/v1/intents/classify"


def _listed(value: object) -> object:
    """A batchable call takes a list: one text is a list of one, so that callers send what they send to everybody."""
    return [value] if isinstance(value, str) else value


@bentoml.service(
    workers=int(os.environ.get("PEER_WORKERS", "1")),
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """One replica of the encoder in each worker process."""

    def __init__(self) -> None:
        self._encoder = Encoder(int(os.environ.get("PEER_THREADS", "1")))

    @bentoml.api(  # type: ignore[untyped-decorator]
        route=PATH,
        batchable=True,
        max_batch_size=int(os.environ.get("PEER_MAX_BATCH", "32")),
        max_latency_ms=int(os.environ.get("PEER_MAX_LATENCY_MS", "60000")),
    )
    def classify(self, text: Annotated[list[str], BeforeValidator(_listed)]) -> list[Answer]:
        """Answer a batch, in order."""
        return self._encoder(text)
