"""Stores of several servers that a measurement has to itself: a primary that is killed is replaced by its replica."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import psutil
import pytest
from redis import Redis

from deployments.core.store_url import StoreUrl
from loadgen.load import LoadError
from loadgen.valkey import Valkey
from loadgen.valkey_groups import Group, behind_sentinel, cluster

KEPT = "3560"
"""Its slot is 0, which the primary that is killed serves."""


@pytest.mark.parametrize(("store", "kind"), [(behind_sentinel, "sentinel"), (cluster, "cluster")])
def test_a_replica_takes_the_place_of_a_killed_primary(
    store: Callable[[Path], AbstractContextManager[Group]], kind: str, tmp_path: Path
):
    """With what was kept; and nothing runs on afterwards."""
    with store(tmp_path) as group:
        url, before = StoreUrl.parse(group.url), group.primary()
        with closing(Redis.from_url(before.url)) as client:
            client.set(KEPT, "1")
            client.execute_command("WAIT", 1, 1000)
        group.kill_primary()
        group.wait_promoted()
        now = {state(each) for each in group.servers if each is not before}

    assert (url.kind, url.nodes) == (kind, tuple(("127.0.0.1", each.port) for each in group.asked))
    assert ("master", KEPT) in now
    assert ("slave", KEPT) not in now
    assert not running_in(tmp_path)


def state(server: Valkey) -> tuple[str, ...]:
    """Its role and its keys."""
    with closing(Redis.from_url(server.url, decode_responses=True)) as client:
        return client.role()[0], *client.keys()


def running_in(folder: Path) -> list[psutil.Process]:
    """This process's servers in a folder."""
    return [each for each in psutil.Process().children(recursive=True) if folder in Path(each.cwd()).parents]


def test_a_promotion_that_never_comes_is_said(tmp_path: Path):
    only = Valkey(tmp_path / "only", tmp_path / "only.log")
    group = Group("redis+cluster://here", [only], [only], lambda _: only.port)
    group.kill_primary()

    with pytest.raises(LoadError, match=rf"redis\+cluster://here has no other primary .*{only.port}.* after 0.1 s"):
        group.wait_promoted(0.1)


def test_a_primary_that_nobody_knows_is_said(tmp_path: Path):
    stopped = Valkey(tmp_path / "stopped", tmp_path / "stopped.log")
    group = Group("redis+cluster://here", [stopped], [stopped], lambda client: int(client.dbsize()))

    with pytest.raises(LoadError, match=r"nobody at redis.*here knows its primary"):
        group.kill_primary()
