"""The ingress deployment: HTTP and Python callers on one side, the rest of the graph on the other.

What a request goes through is `core.service`; what HTTP makes of it is `http.app`; the rest of the graph is `parts`.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.core.access import Callers, WithoutKeys
from deployments.core.artifact import Artifact
from deployments.core.classification import to_json
from deployments.core.connection import connect, subscribe
from deployments.core.contract import BatchRequest, ClassifyRequest, FeedbackRecord
from deployments.core.corrections import Follower
from deployments.core.errors import BadRequest, DeadlineExceeded, IntentGraphError, Internal, InvalidInput
from deployments.core.feedback import FeedbackService
from deployments.core.key_ring import KeyRing
from deployments.core.log_layout import LOG
from deployments.core.parsing import parse
from deployments.core.purges import CHANNEL, PurgeFollower
from deployments.core.service import IntentService
from deployments.core.settings import Settings
from deployments.http.admission import Admission
from deployments.http.app import build_app
from deployments.http.front import Front, install
from deployments.http.request_log import RequestLog
from deployments.logs import configure_logging, request_lines
from deployments.parts import HandleParts
from deployments.runtime import RayMetrics

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

FOLLOW_TIMEOUT_S = 1.0
"""How long a dead store goes unnoticed by those who follow it."""
FIRST_FOLD_TIMEOUT_S = 5.0
"""Time the corrections may take to be read before a replica serves without them, degraded."""


class Ingress:
    """Answers HTTP (through `build_app`) and Python handles (the four methods below)."""

    async def __init__(  # type: ignore[misc] # Serve awaits it
        self, settings: Settings, cache: DeploymentHandle, model: DeploymentHandle, feedback: DeploymentHandle
    ) -> None:
        configure_logging(settings.log_level)
        recorder = RayMetrics()
        self._settings = settings
        self._admission = Admission(_callers(settings))
        self._follower = Follower(
            lambda: connect(settings.feedback_url, timeout_s=FOLLOW_TIMEOUT_S, key=LOG),
            timeout_s=FOLLOW_TIMEOUT_S,
            ttl_s=settings.correction_ttl_s,
            max_corrections=settings.max_corrections,
            metrics=recorder,
        )
        await self._follower.start(timeout_s=FIRST_FOLD_TIMEOUT_S)
        self._parts = HandleParts(settings, self._follower, recorder, cache=cache, model=model, feedback=feedback)
        artifact = Artifact.load(settings.artifact_folder)
        self._service = IntentService(settings, artifact, self._parts, recorder)
        self._feedback = FeedbackService(settings, artifact, self._parts, recorder)
        self._purges = PurgeFollower(
            lambda: subscribe(settings.predictions_url, CHANNEL, timeout_s=FOLLOW_TIMEOUT_S),
            self._service.local_tier,
            self._parts.forget_unwritten,
        )
        if settings.enable_caching:
            self._purges.start()
        self._warming = asyncio.create_task(self._parts.health())  # a handle's first call is slow; let it be nobody's

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP application; Serve asks for it once the replica is constructed."""
        log = RequestLog(request_lines(), log_texts=self._settings.log_texts)
        app = build_app(self._settings, self._service, self._feedback, self._parts, log, self._admission)
        install(Front(self._service, app, log, self._admission, looks_up=self._settings.enable_caching))
        return app

    async def classify(self, text: str) -> dict[str, Any]:
        """The classification of one text, as the HTTP body has it.

        Raises:
            ValueError: the text is not what the contract takes.
            TimeoutError: no answer in time.
            RuntimeError: `"<slug>: <detail>"` for everything else, such as `overloaded` and `unavailable`.
        """
        with builtin_errors():
            answers = await self._service.classify((self._asked(ClassifyRequest, {"text": text}).text,))
            return answers.classifications[0]

    async def classify_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The classifications of up to 100 texts, in their order. Raises as `classify` does."""
        with builtin_errors():
            answers = await self._service.classify(self._asked(BatchRequest, {"texts": texts}).texts)
            return answers.classifications

    async def submit_feedback(self, record: Mapping[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Write a feedback record; the receipt means it is on disk. Raises as `classify` does."""
        with builtin_errors():
            try:
                submitted = _valid(FeedbackRecord, record)
            except IntentGraphError as error:
                self._feedback.refuse("unknown", error)
                raise
            return (await self._feedback.submit(submitted, idempotency_key)).model_dump()

    async def feedback_stats(self) -> dict[str, Any]:
        """Counts over the retained log. Raises as `classify` does."""
        with builtin_errors():
            return (await self._feedback.stats()).model_dump()

    def _asked(self, model: type[M], question: object) -> M:
        try:
            return _valid(model, question)
        except IntentGraphError:
            self._service.refuse()
            raise


def _callers(settings: Settings) -> Callers:
    """Who HTTP requests are from. Raises StartupError when the keys file cannot be read."""
    if settings.api_keys_file is None:
        return WithoutKeys(settings.keyless_caller)
    keys = KeyRing(settings.api_keys_file)
    keys.follow()
    return keys


def _valid(model: type[M], value: object) -> M:
    try:
        return parse(model, to_json(value))
    except (TypeError, ValueError) as error:  # an object, a lone surrogate, a NaN, a circle
        raise InvalidInput(f"not what JSON can carry: {error}") from None


@contextmanager
def builtin_errors() -> Iterator[None]:
    """Raise builtin exceptions only: a caller without this package could not unpickle its own."""
    try:
        yield
    except (InvalidInput, BadRequest) as error:
        raise ValueError(error.handle_message) from None
    except DeadlineExceeded as error:
        raise TimeoutError(error.handle_message) from None
    except IntentGraphError as error:
        raise RuntimeError(error.handle_message) from None
    except Exception:
        logger.exception("a handle call failed")
        raise RuntimeError(Internal("the service failed; its log has the cause").handle_message) from None
