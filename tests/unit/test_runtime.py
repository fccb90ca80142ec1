"""Calls to other deployments: made once more where a replica died, and told in the service's own terms."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from deployments import runtime
from deployments.core.errors import IntentGraphError, Internal, Overloaded, Unavailable
from deployments.core.rpc import Address, RpcServer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "RETRY_PAUSE_S", 0)


class Part:
    """Meets each of `errors` in turn and answers after them; counts its calls."""

    def __init__(self, *errors: BaseException) -> None:
        self.calls = 0
        self._errors = list(errors)

    async def __call__(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


async def test_a_call_that_met_a_dying_replica_is_made_once_more():
    """The other replica answers, or the next one."""
    part = Part(RayActorError())

    assert await runtime.ask(part, "model", 1) == "answer"
    assert part.calls == 2


async def test_it_is_not_made_again_where_nobody_wants_that():
    """What it carries may be what ended the replica."""
    part = Part(RayActorError())

    with pytest.raises(Unavailable):
        await runtime.ask(part, "model", 1, retries=0)
    assert part.calls == 1


async def test_it_is_not_made_a_third_time():
    """Then the part is away."""
    part = Part(RayActorError(), RayActorError())

    with pytest.raises(Unavailable, match="model is away"):
        await runtime.ask(part, "model", 1)
    assert part.calls == 2


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (Overloaded("full"), Overloaded),
        (RayServeException("no such deployment"), Unavailable),
        (asyncio.CancelledError(), Unavailable),
        (ZeroDivisionError(), Internal),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else each.__name__,
)
async def test_nothing_else_is_asked_twice(raised: BaseException, told: type[IntentGraphError]):
    """Our own errors cross as they are; a call that its part gave up is not the caller's own end."""
    part = Part(raised)

    with pytest.raises(told):
        await runtime.ask(part, "model", 1)
    assert part.calls == 1


async def test_a_call_ends_with_its_time():
    """However often it was made."""

    async def hangs() -> None:
        await asyncio.sleep(60)

    with pytest.raises(Unavailable, match=r"within 0\.01 s"):
        await runtime.ask(hangs, "model", 0.01)


async def test_who_is_cancelled_stays_cancelled():
    """A caller that leaves is no part that is away."""

    async def hangs() -> None:
        await asyncio.sleep(60)

    caller = asyncio.create_task(runtime.ask(hangs, "model", 60))
    await asyncio.sleep(0)
    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller


@pytest.mark.parametrize(
    ("switch", "is_open"), [(None, True), ("0", True), ("false", True), ("1", False), ("true", False), ("TRUE", False)]
)
def test_no_port_is_opened_beside_rays_tls(monkeypatch: pytest.MonkeyPatch, switch: str | None, is_open: bool):
    """It would not be encrypted."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    if switch is not None:
        monkeypatch.setenv("RAY_USE_TLS", switch)
    monkeypatch.setattr(runtime.ray.util, "get_node_ip_address", lambda: "10.0.0.1")

    assert runtime.host_for_replicas() == ("10.0.0.1" if is_open else None)


async def test_a_server_without_a_port_is_called_by_handle(monkeypatch: pytest.MonkeyPatch):
    """Ray may know its node by an address that the node does not have: 203.0.113.0/24 is nobody's (RFC 5737)."""

    async def echo(request: bytes) -> bytes:
        return request

    monkeypatch.setattr(runtime, "host_for_replicas", lambda: "203.0.113.1")
    assert await runtime.listen(RpcServer(echo)) is None
    monkeypatch.setattr(runtime, "host_for_replicas", lambda: None)
    assert await runtime.listen(RpcServer(echo)) is None


def handle(*replicas: Address | Exception | None, hangs: bool = False) -> Any:
    """A deployment's, whose replicas answer so; one more `hangs`, and Serve routes round it."""

    async def results_async(*, return_exceptions: bool) -> list[object]:
        assert return_exceptions
        if hangs:
            await asyncio.Event().wait()
        return list(replicas)

    async def address() -> object:
        return replicas[0]

    broadcast = SimpleNamespace(results_async=results_async)
    return SimpleNamespace(broadcast=lambda _method: broadcast, address=SimpleNamespace(remote=address))


HERE, THERE = (Address("10.0.0.1", port, b"token") for port in (1, 2))


async def test_the_addresses_are_of_all_replicas_that_have_one():
    """Some have none, and some are on their way out."""
    assert await runtime.addresses(handle(HERE, None, RayActorError(), THERE), "model") == [HERE, THERE]


async def test_a_replica_that_hangs_hides_no_other_for_long(monkeypatch: pytest.MonkeyPatch):
    """Serve gives all answers or none."""
    monkeypatch.setattr(runtime, "FIND_TIMEOUT_S", 0.05)

    assert await runtime.addresses(handle(HERE, THERE, hangs=True), "model") == [HERE]
