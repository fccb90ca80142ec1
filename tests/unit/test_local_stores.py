"""The stores of a local run, each test on real Valkey servers."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from deployments.core.errors import StartupError
from deployments.local import leash
from deployments.local.ports import free_ports
from deployments.local.processes import Identity
from deployments.local.stores import Store, StoreSpec, answers, configuration


@pytest.fixture
def spec(tmp_path):
    """Builds the spec of a store on a free port below the test's folder."""

    def build(name: str, config: Path | None = None) -> StoreSpec:
        config = config or configuration(name)
        return StoreSpec(name, config, free_ports(1)[0], tmp_path / name, tmp_path / f"{name}.log")

    return build


@pytest.fixture
async def running(spec):
    """Starts stores, watched, and stops them after the test."""
    started: list[tuple[Store, asyncio.Task[None]]] = []

    async def start(name: str, said: list[str] | None = None) -> Store:
        store = Store(spec(name), environment=os.environ, say=(said if said is not None else []).append)
        await store.start()
        started.append((store, asyncio.create_task(store.watch())))
        return store

    yield start
    for store, watch in started:
        watch.cancel()
        await store.stop(grace_s=2)


async def configured(store: Store, *names: str) -> dict[str, str]:
    async with redis.asyncio.from_url(store.spec.url, decode_responses=True) as client:
        return {name: (await client.config_get(name))[name] for name in names}


async def test_the_log_keeps_what_it_acknowledges(running):
    """On disk before the answer, nothing evicted, no snapshots."""
    store = await running("feedback")

    found = await configured(store, "appendonly", "appendfsync", "maxmemory-policy", "save")

    assert found == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}


async def test_the_prediction_store_is_a_bounded_cache(running):
    """512 MB, least recently used first, nothing on disk."""
    store = await running("predictions")

    found = await configured(store, "appendonly", "maxmemory", "maxmemory-policy", "save")

    assert found == {"appendonly": "no", "maxmemory": str(512 * 2**20), "maxmemory-policy": "allkeys-lru", "save": ""}


async def test_a_store_listens_on_loopback_only(running):
    """Other machines cannot reach it."""
    store = await running("predictions")

    assert await configured(store, "bind") == {"bind": "127.0.0.1"}


async def test_a_killed_log_is_back_on_its_port_with_its_data(running):
    """Within five seconds, and without asking anybody."""
    said: list[str] = []
    store = await running("feedback", said)
    async with redis.asyncio.from_url(store.spec.url) as client:
        await client.xadd("log", {"text": "kept"})
    killed = store.pid
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()

    while store.pid == killed or not await answers(store.spec.port):
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 5

    async with redis.asyncio.from_url(store.spec.url) as client:
        assert [entry for _, entry in await client.xrange("log")] == [{b"text": b"kept"}]
    assert "the feedback store died (signal 9)" in said[0]


async def test_a_store_that_does_not_start_says_why(spec, tmp_path):
    """The server's own last words, and where the rest is."""
    config = tmp_path / "wrong.conf"
    config.write_text("maxmemory-policy nonsense\n")
    store = Store(spec("predictions", config), environment=os.environ, say=print)

    with pytest.raises(StartupError, match="the predictions store does not start") as error:
        await store.start()

    assert "predictions.log" in str(error.value)


async def test_stopping_ends_the_server(running):
    """And stopping twice does no harm."""
    store = await running("predictions")
    process = Identity.of(store.pid)
    (watch,) = [task for task in asyncio.all_tasks() if "Store.watch" in str(task.get_coro())]
    watch.cancel()

    await store.stop(grace_s=2)
    await store.stop(grace_s=2)

    assert not process.alive


def test_a_leashed_program_ends_with_its_parent():
    """Even when the parent was killed and could not say goodbye."""
    script = (
        "import os, subprocess, sys, time\n"
        f"leashed = [sys.executable, {leash.__file__!r}, str(os.getpid()), {shutil.which('sleep')!r}, '60']\n"
        "print(subprocess.Popen(leashed, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    began = time.monotonic()
    while child.name() != "sleep" and time.monotonic() - began < 5:
        time.sleep(0.01)  # until the leash is on and the program has taken over

    parent.kill()
    parent.communicate()

    assert psutil.wait_procs([child], timeout=5)[0] == [child]
