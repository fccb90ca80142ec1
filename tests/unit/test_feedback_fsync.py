"""Acknowledged means on disk: the server's system calls, counted and put in order.

Killing the server cannot show it: what was written and never synced is in the kernel's memory and survives. The trace
needs `strace`; without it these tests are skipped, or failed where `SYSTEM_TOOLS` is `required`, as in `.ci/run`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.feedback_log import FeedbackLog
from deployments.core.log_store import LogStore
from tests.unit.conftest import DURABLE, missing
from tests.unit.feedback_rows import submission
from tests.unit.traces import Replay, TracedValkey, replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from deployments.core.feedback_log import Submission

GROUPS = 8


@pytest.fixture(scope="module")
def strace() -> str:
    """The program that traces, where it may."""
    found = shutil.which("strace")
    if not found or subprocess.run([found, "-qq", "-o", "/dev/null", "true"], check=False).returncode:
        missing("no strace, or it may not trace; on Debian: apt-get install strace")
    return found


@pytest.fixture
def traced(strace: str, tmp_path: Path) -> Callable[..., TracedValkey]:
    """Starts a traced server with the log's settings, changed by arguments."""
    return lambda *args: TracedValkey(tmp_path, strace, (*DURABLE, *args))


@asynccontextmanager
async def log_on(server: TracedValkey, *, unsafe: bool = False) -> AsyncIterator[FeedbackLog]:
    async with aclosing(connect(server.url, timeout_s=10)) as client:
        yield FeedbackLog(LogStore(client, timeout_s=10, unsafe=unsafe))


def group(name: str, size: int) -> list[Submission]:
    return [submission(f"{name}-{n}", text="x" * 1000) for n in range(size)]


@pytest.mark.parametrize("size", [1, 128])
async def test_a_group_costs_one_fsync_and_is_acknowledged_after_it(traced: Callable[..., TracedValkey], size: int):
    """Whether it is one record or 128 of 1 kB, which the server reads in many pieces."""
    server = traced()
    async with log_on(server) as log:
        receipts = [receipt for n in range(GROUPS) for receipt in await log.append(group(str(n), size))]

    assert server.end() == Replay({receipt.feedback_id for receipt in receipts}, early=set(), hasty=0, fsyncs=GROUPS)


async def test_groups_of_several_writers_cost_one_fsync_each_at_most(traced: Callable[..., TracedValkey]):
    """Those that come together share one; none is acknowledged before its own."""
    server = traced()
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(log_on(server)) for _ in range(4)]
        groups = [logs[n % 4].append(group(str(n), 5)) for n in range(4 * GROUPS)]
        receipts = [receipt for done in await asyncio.gather(*groups) for receipt in done]

    done = server.end()
    assert (done.acknowledged, done.early, done.hasty) == ({receipt.feedback_id for receipt in receipts}, set(), 0)
    assert 0 < done.fsyncs <= len(groups)


async def test_a_duplicate_costs_no_fsync(traced: Callable[..., TracedValkey]):
    """It is on disk already."""
    server = traced()
    async with log_on(server) as log:
        for _ in range(3):
            await log.append(group("same", 5))

    done = server.end()
    assert (len(done.acknowledged), done.early, done.hasty, done.fsyncs) == (5, set(), 0, 1)


async def test_a_decision_and_a_deletion_cost_one_fsync_each_and_are_answered_after_it(
    traced: Callable[..., TracedValkey],
):
    """What an operator is told is done is on disk like everything else."""
    server = traced()
    async with log_on(server) as log:
        approved, rejected, deleted = await log.append([submission(str(n), state="pending") for n in range(3)])
        await log.review(approved.feedback_id, "approved")
        await log.review(rejected.feedback_id, "rejected")
        await log.delete(deleted.feedback_id)

    done = server.end()
    assert (done.early, done.hasty, done.fsyncs) == (set(), 0, 4)


async def test_syncing_every_second_is_seen_to_acknowledge_too_early(traced: Callable[..., TracedValkey]):
    """So the trace would show it, and a store of that kind is rightly refused."""
    server = traced("--appendfsync", "everysec")
    async with log_on(server, unsafe=True) as log:
        receipts = [receipt for n in range(GROUPS) for receipt in await log.append(group(str(n), 1))]

    done = server.end()
    assert done.early
    assert done.hasty
    assert done.fsyncs < len(receipts)


WRITE = '7 write(9</d/a.incr.aof>, "*1 1795799163755-0", 817) = 817'
SYNC = "7 fdatasync(9</d/a.incr.aof>) = 0"
SYNC_BEGINS = "8 fdatasync(9</d/a.incr.aof> <unfinished ...>"
SYNC_ENDS = "8 <... fdatasync resumed>) = 0"
SYNC_FAILS = "8 <... fdatasync resumed>) = -1 EIO (Input/output error)"
REPLY = '7 writev(10<socket:[1]>, [{iov_base="*3 recorded 1795799163755-0", iov_len=47}], 1) = 65'


@pytest.mark.parametrize(
    ("trace", "early"),
    [
        ((WRITE, SYNC, REPLY), False),
        ((WRITE, SYNC_BEGINS, SYNC_ENDS, REPLY), False),
        ((WRITE, REPLY, SYNC), True),
        ((REPLY, WRITE, SYNC), True),
        ((WRITE, SYNC_BEGINS, REPLY, SYNC_ENDS), True),
        ((SYNC_BEGINS, WRITE, SYNC_ENDS, REPLY), True),
        ((WRITE, SYNC_BEGINS, SYNC_FAILS, REPLY), True),
        ((WRITE, SYNC.replace("a.incr", "b.incr"), REPLY), True),
    ],
)
def test_only_an_fsync_that_began_after_the_write_and_ended_before_the_reply_covers_it(
    trace: tuple[str, ...], early: bool
):
    """It has to be of the same file, and to succeed."""
    done = replay("\n".join(trace))

    assert done.acknowledged == {"1795799163755-0"}
    assert done.early == (done.acknowledged if early else set())
