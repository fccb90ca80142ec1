"""Requests to the model deployment as an ingress replica makes them: alone over a connection, together by handle."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.core import metrics
from deployments.core.errors import Unavailable
from deployments.core.lanes import Request, RequestLanes
from deployments.core.outcomes import Outcome, outcomes_from_json, request_to_json
from deployments.core.rpc import Address, RpcChannel
from deployments.core.settings import Settings
from deployments.runtime import RETRY_PAUSE_S, addresses, ask

REPLY_TIME_S = 0.02
"""What a reply takes, with a margin: the model itself is to tell whose time has ended, not a caller who hangs up."""


class ModelCalls:
    """Asks a model replica over a connection to it, and by handle while there is none."""

    def __init__(self, settings: Settings, model: DeploymentHandle, recorder: metrics.Metrics) -> None:
        self._model = model
        self._metrics = recorder
        self._channel = RpcChannel(self._find_replicas)
        self._requests: RequestLanes[Outcome] = RequestLanes(
            self._call_by_handle,
            send_alone=self._call_directly,
            max_requests=settings.max_batch_size,
            max_waiting=settings.max_waiting_requests,
            max_in_flight=settings.max_model_calls,
            metrics=recorder,
        )

    async def predict(self, texts: Sequence[str], timeout_s: float) -> list[Outcome]:
        """The model's outcome for each text, in order."""
        return await self._requests.submit(texts, timeout_s=timeout_s)

    async def _call_directly(self, request: Request) -> Sequence[Outcome]:
        """The outcomes of one request, over a connection; over another, once, where that broke off.

        By handle it could meet the same replica again: Serve does not know for a while that one hangs.

        Raises:
            ConnectionRefusedError: there is none.
            ConnectionError: it broke off, or brought nothing of use; a handle may.
            Unavailable: no reply in the time of the request, or two replicas were gone.
        """
        try:
            return await self._call_replica(request)
        except ConnectionResetError as broken:
            await asyncio.sleep(RETRY_PAUSE_S)  # whatever ended this one may have ended others
            try:
                return await self._call_replica(request)
            except ConnectionRefusedError:
                raise broken from None
            except ConnectionResetError as error:
                raise Unavailable("two replicas of the model were gone") from error

    async def _call_replica(self, request: Request) -> Sequence[Outcome]:
        left_s = request.leaves_s - asyncio.get_running_loop().time()
        content = request_to_json(request.texts, _to_answer_in(left_s))
        try:
            async with asyncio.timeout(left_s):
                # What a text costs goes with its length: ten long ones are more than twenty short ones.
                reply = await self._channel.choose().call(content, weight=len(content))
            outcomes = outcomes_from_json(reply)
        except TimeoutError as error:
            raise Unavailable(f"the model did not answer within {left_s:g} s") from error
        except (Unavailable, ValueError) as error:
            raise ConnectionAbortedError("the reply is none") from error
        if len(outcomes) != len(request.texts):
            raise ConnectionAbortedError(f"{len(outcomes)} outcomes for {len(request.texts)} texts")
        self._metrics.record(metrics.MODEL_CALLS, transport="direct")
        return outcomes

    async def _call_by_handle(self, requests: list[Request]) -> Sequence[Sequence[Outcome]]:
        now_s = asyncio.get_running_loop().time

        def call() -> Any:
            started_s = now_s()  # the second time there is less time left
            return self._model.predict.remote(
                [(each.texts, _to_answer_in(each.leaves_s - started_s)) for each in requests]
            )

        left_s = max(each.leaves_s for each in requests) - now_s()
        # A text that ends a replica's process is to end no third one.
        retries = 0 if any(each.was_sent for each in requests) else 1
        outcomes: Sequence[Sequence[Outcome]] = await ask(call, "model", left_s, retries=retries)
        self._metrics.record(metrics.MODEL_CALLS, transport="handle")
        return outcomes

    async def _find_replicas(self) -> Collection[Address]:
        return await addresses(self._model, "model")


def _to_answer_in(left_s: float) -> float:
    """Of the seconds left to a request, those that the model has."""
    return left_s - min(REPLY_TIME_S, left_s / 10)
