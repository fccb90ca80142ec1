"""`intents up`: start stores, Ray and the graph in this order, serve until told to stop, stop them in the other order.

    start    check · hold the folders · stores · Ray node · deploy · every deployment HEALTHY · first answer
    serve    stores restarted when they die; Ray's end is ours
    stop     Serve (replicas, HAProxy) · Ray · what either left · stores

This process outlives all it starts: children are leashed to it, orphans come to it. Ended by SIGINT, SIGTERM or SIGHUP;
a second one hurries. Whatever happens, nothing it started stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.core.errors import StartupError
from deployments.local import preflight, processes, rollout, stores
from deployments.local.environment import RUN_VARIABLE, node_environment
from deployments.local.instance import State, StateFile, StateKeeper, held, without_password
from deployments.local.node import DASHBOARD, NodePorts, RayNode, forget_cluster, ray_logs
from deployments.local.ports import free_ports
from deployments.local.processes import Identity
from deployments.local.serve_api import ServeApi

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping
    from typing import Any

    from deployments.local.plan import Plan
    from deployments.local.progress import Progress

SERVE_STOP_S = 8.0
RAY_STOP_S = 4.0
LEFT_STOP_S = 1.0
STORE_STOP_S = 1.0
POLL_S = 0.2

STORE_VARIABLES = {"predictions": "REDIS_URL", "feedback": "FEEDBACK_REDIS_URL"}
EXAMPLE = (
    "curl -X POST {address}/api/v1/intents/classify -H 'Content-Type: application/json' {key}"
    """-d '{{"text": "Write a haiku about autumn"}}'"""
)
KEY_EXAMPLE = '-H "Authorization: Bearer $INTENTS_API_KEY" '


def up(plan: Plan, state_file: StateFile, progress: Progress, environment: Mapping[str, str] = os.environ) -> None:
    """Run the plan in this process until a signal ends it.

    Raises:
        StartupError: it could not start, or Ray ended by itself; everything started is stopped by then.
    """
    sweep(state_file, progress)
    check(plan, state_file)
    with contextlib.ExitStack() as folders:
        folders.enter_context(
            held(state_file.folder, purpose="state folder", remedy="stop that run with `intents down`")
        )
        if "feedback" in plan.stores:
            remedy = "choose another with --data-dir"
            folders.enter_context(held(plan.options.data_dir, purpose="data folder", remedy=remedy))
        scratch = folders.enter_context(_scratch())
        asyncio.run(Supervisor(plan, state_file, progress, scratch=scratch, environment=environment).run())


def check(plan: Plan, state_file: StateFile) -> None:
    """Refuse what cannot work.

    Raises:
        StartupError: one line a problem.
    """
    running = state_file.read()
    if running is not None and running.alive:
        raise StartupError(
            f"port {running.address.rpartition(':')[2]} is taken by an `intents up` that already runs "
            f"(pid {running.supervisor.pid}, {running.address}); stop it with `intents down`"
        )
    found = preflight.problems(plan, preflight.Machine.here())
    if found:
        raise StartupError("\n".join(found))


def sweep(state_file: StateFile, progress: Progress) -> int:
    """End what a killed supervisor left behind; gives how many processes that were. A live one is not touched."""
    state = state_file.read()
    if state is None or state.alive:
        return 0
    left = processes.belonging(state.run, state.sessions)
    if left:
        progress.done(f"a run that was killed left {len(left)} processes; ending them")
        processes.end(left, grace_s=STORE_STOP_S)
    clear(state, state_file)
    return len(left)


def clear(state: State, state_file: StateFile) -> None:
    """Remove the files of a run that has ended."""
    shutil.rmtree(state.folder, ignore_errors=True)
    forget_cluster(state.gcs)
    state_file.remove(state.run)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A private folder with a path short enough for sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="intents-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """One run, from its first process to its last."""

    def __init__(
        self, plan: Plan, state_file: StateFile, progress: Progress, *, scratch: Path, environment: Mapping[str, str]
    ) -> None:
        self._plan = plan
        self._progress = progress
        self._scratch = scratch
        self._run = secrets.token_hex(8)
        self._base = environment
        self._api = ServeApi(DASHBOARD)
        self._deployed = False
        self._stop_asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._logs = state_file.folder
        store_ports, node_ports = _ports(len(plan.stores))
        self._stores = self._build_stores(store_ports)
        self._node = self._build_node(node_ports)
        self._keeper = StateKeeper(state_file, self._first_state())

    async def run(self) -> None:
        """Start, serve, stop.

        Raises:
            StartupError: the start failed, or Ray ended by itself.
        """
        processes.adopt_orphans()
        loop = asyncio.get_running_loop()
        for number in _ending_signals():
            loop.add_signal_handler(number, self._on_signal)
        reaper = asyncio.create_task(self._reap())
        try:
            await self._unless_stopped(self._start_and_serve())
        except StartupError:
            self._progress.done("that failed; stopping everything")
            raise
        finally:
            await self._stop()
            reaper.cancel()

    async def _start_and_serve(self) -> None:
        self._keeper.update()
        async with asyncio.TaskGroup() as watches:
            for store in self._stores:
                self._progress.waiting(f"starting the {store.spec.name} store")
                await store.start()
                self._progress.done(f"{store.spec.name} store is up on port {store.spec.port}")
                watches.create_task(store.watch())
            await self._start_node()
            watches.create_task(self._end_with_node())
            self._deployed = True
            await rollout.deploy(self._api, self._plan.config, self._progress)
            await rollout.first_answer(self._plan.address, self._progress)
            self._announce(await rollout.health(self._plan.address))
            await asyncio.Event().wait()

    async def _start_node(self) -> None:
        self._progress.waiting("starting Ray")
        self._node.start()
        session = self._node.session
        self._keeper.update(sessions=(session,) if session else ())
        async with asyncio.TaskGroup() as waiting:  # a Ctrl-C ends both, and neither is left to complain
            ready = waiting.create_task(self._node.ready(self._api))
            while not ready.done():
                self._progress.waiting("starting Ray")
                await asyncio.wait({ready}, timeout=POLL_S)
        self._progress.done(f"Ray is up at {self._node.gcs}, dashboard {DASHBOARD}")

    def _announce(self, health: str) -> None:
        self._keeper.update(phase="ready")
        self._progress.rest()
        if health != "ok":
            self._progress.done(f"not everything is there yet: {health}")
        keys = self._plan.keys_in_force
        if keys is not None:
            file = self._plan.arguments["api_keys_file"]
            self._progress.done(f"every call needs one of the API keys in {file}; in force: {keys}")
        self._progress.done(f"serving at {self._plan.address}")
        example = EXAMPLE.format(address=self._plan.address, key="" if keys is None else KEY_EXAMPLE)
        self._progress.tell(
            f"\n  {example}\n\n"
            f"  from Python: RAY_AUTH_MODE=disabled RAY_ADDRESS={self._node.gcs}; dashboard: {DASHBOARD}\n"
            "  stop with Ctrl-C or `intents down`\n"
        )

    async def _end_with_node(self) -> None:
        await self._node.watch()
        raise StartupError(f"Ray ended by itself; see {self._node.log} and {ray_logs()}")

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work until it fails or a signal comes."""
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when we are cancelled: nothing may start while `_stop` runs
            task.cancel()
            stopped.cancel()
            await asyncio.wait({task, stopped})
        if not task.cancelled() and (error := task.exception()):
            raise _first(error)

    async def _reap(self) -> None:
        while True:
            own = {store.pid for store in self._stores} | {self._node.pid}
            processes.reap_orphans(pid for pid in own if pid)
            await asyncio.sleep(1.0)

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            self._hurry.set()
        self._stop_asked.set()

    async def _stop(self) -> None:
        begun = time.monotonic()
        self._stop_asked.set()
        with contextlib.suppress(OSError):
            self._keeper.update(phase="stopping")
        if self._deployed and not self._node.ended:
            await self._unless_hurried("stopping the graph", self._shut_serve_down())
        await self._unless_hurried("stopping Ray", self._node.stop(grace_s=RAY_STOP_S))
        await self._end_leftovers()
        await asyncio.gather(*(store.stop(grace_s=STORE_STOP_S) for store in self._stores))
        self._progress.rest()
        resisting = processes.belonging(self._run, self._keeper.state.sessions)
        if resisting:  # the state file stays, for `intents down`
            self._progress.done(f"{len(resisting)} processes do not end; try `intents down`")
            return
        clear(self._keeper.state, self._keeper.file)
        self._progress.done(f"stopped in {time.monotonic() - begun:.1f} s; nothing is left running")

    async def _shut_serve_down(self) -> None:
        with contextlib.suppress(OSError):
            await self._api.shut_down(timeout_s=SERVE_STOP_S)

    async def _unless_hurried(self, text: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        hurried = asyncio.create_task(self._hurry.wait())
        while not (task.done() or hurried.done()):
            self._progress.waiting(f"{text} (again to hurry)")
            await asyncio.wait({task, hurried}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        for each in (task, hurried):
            each.cancel()
        await asyncio.gather(task, hurried, return_exceptions=True)

    async def _end_leftovers(self) -> None:
        """End whatever of this run still runs, the stores apart: they go last, so that nobody misses them."""
        own_stores = [store.pid for store in self._stores if store.pid]
        state = self._keeper.state
        for grace_s in (0.0 if self._hurry.is_set() else LEFT_STOP_S, 0.0):
            left = processes.belonging(self._run, state.sessions, besides=own_stores)
            await asyncio.to_thread(processes.end, left, grace_s=grace_s)

    def _build_stores(self, ports: list[int]) -> list[stores.Store]:
        environment = dict(self._base) | {RUN_VARIABLE: self._run}
        data = {"predictions": self._scratch / "predictions", "feedback": self._plan.options.data_dir / "feedback"}
        specs = [
            stores.StoreSpec(
                name=name,
                config=stores.configuration(name),
                port=port,
                data=data[name],
                log=self._logs / f"{name}.log",
            )
            for name, port in zip(self._plan.stores, ports, strict=True)
        ]
        return [stores.Store(spec, environment=environment, say=self._progress.done) for spec in specs]

    def _build_node(self, ports: NodePorts) -> RayNode:
        environment = node_environment(
            self._base,
            run=self._run,
            folder=self._scratch,
            haproxy=self._plan.options.haproxy,
            fallback_proxy_port=ports.fallback_proxy,
            store_urls={STORE_VARIABLES[store.spec.name]: store.spec.url for store in self._stores},
        )
        return RayNode(ports, environment=environment, log=self._logs / "ray.log")

    def _first_state(self) -> State:
        own = Identity.of(os.getpid())
        assert own is not None
        started = {store.spec.name: store.spec.url for store in self._stores}
        given = {name: self._base[variable] for name, variable in STORE_VARIABLES.items() if self._base.get(variable)}
        return State(
            run=self._run,
            supervisor=own,
            phase="starting",
            address=self._plan.address,
            dashboard=DASHBOARD,
            gcs=self._node.gcs,
            stores={name: without_password(url) for name, url in (given | started).items()},
            started_stores=tuple(started),
            folder=str(self._scratch),
            data_dir=str(self._plan.options.data_dir),
            log=str(self._logs / "up.log"),
        )


def _ports(stores_count: int) -> tuple[list[int], NodePorts]:
    """Ports for so many stores and for the node, drawn together so that none is drawn twice."""
    drawn = free_ports(stores_count + NodePorts.COUNT)
    return drawn[:stores_count], NodePorts(*drawn[stores_count:])


def _ending_signals() -> tuple[signal.Signals, ...]:
    """Those that end a run; under `nohup` a closed terminal does not."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if ignored else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _first(error: BaseException) -> BaseException:
    """The first failure itself; a task group wraps it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
