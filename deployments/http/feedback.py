"""The calls about feedback: request in, response out, errors raised."""

from typing import get_args

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from deployments.core import contract
from deployments.core.classification import to_json
from deployments.core.errors import IntentGraphError
from deployments.core.feedback import FeedbackService
from deployments.core.feedback_log import Verdict
from deployments.core.log_layout import FIRST_ID, FeedbackState
from deployments.core.parsing import parse
from deployments.core.settings import Settings
from deployments.http.admission import caller_of
from deployments.http.wire import idempotency_key, json_response, number, one_of, read_body

STATES: tuple[str, ...] = get_args(FeedbackState)
DEFAULT_PAGE = 100
DEFAULT_DAYS = 7


class FeedbackHandlers:
    """One method for each call of `app.CALLS` that is about feedback."""

    def __init__(self, settings: Settings, service: FeedbackService) -> None:
        self._settings = settings
        self._service = service

    async def feedback(self, request: Request) -> Response:
        """Record a correction or confirmation."""
        try:
            key = idempotency_key(request)
            record = parse(contract.FeedbackRecord, await read_body(request, self._settings.max_body_bytes))
        except IntentGraphError as error:
            self._service.refuse("unknown", error)
            raise
        receipt = await self._service.submit(record, key, caller_of(request.scope))
        return json_response(to_json(receipt.model_dump()), 201 if receipt.status == "recorded" else 200)

    async def feedback_stats(self, _request: Request) -> Response:
        """Count the feedback."""
        return _answer(await self._service.stats())

    async def list_feedback(self, request: Request) -> Response:
        """List the feedback in the order of the log."""
        after = request.query_params.get("after", FIRST_ID)
        limit = number(request, "limit", default=DEFAULT_PAGE, highest=contract.MAX_FEEDBACK_PAGE)
        return _answer(await self._service.page(after, limit, one_of(request, "state", STATES)))

    async def approve_feedback(self, request: Request) -> Response:
        """Have a correction served."""
        return await self._review(request, "approved")

    async def reject_feedback(self, request: Request) -> Response:
        """Have a correction never served."""
        return await self._review(request, "rejected")

    async def _review(self, request: Request, verdict: Verdict) -> Response:
        feedback_id = request.path_params["feedback_id"]
        return _answer(await self._service.review(feedback_id, verdict, caller_of(request.scope)))

    async def delete_feedback(self, request: Request) -> Response:
        """Delete a record."""
        await self._service.delete(request.path_params["feedback_id"], caller_of(request.scope))
        return Response(status_code=204)

    async def erase_feedback(self, request: Request) -> Response:
        """Delete all feedback of a user."""
        payload = parse(contract.EraseRequest, await read_body(request, self._settings.max_body_bytes))
        erased = await self._service.erase(payload, caller_of(request.scope))
        request.state.log = {"deleted": erased.deleted}
        return _answer(erased)

    async def ack_feedback(self, request: Request) -> Response:
        """Move the training cursor."""
        payload = parse(contract.AckRequest, await read_body(request, self._settings.max_body_bytes))
        return _answer(await self._service.acknowledge(payload))

    async def feedback_patterns(self, request: Request) -> Response:
        """Show what is confused, gets worse or is contested."""
        days = number(request, "days", default=DEFAULT_DAYS, highest=contract.MAX_PATTERN_DAYS)
        return _answer(await self._service.patterns(days))


def _answer(model: BaseModel) -> Response:
    return json_response(to_json(model.model_dump(mode="json", exclude_none=False)))
