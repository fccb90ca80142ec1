"""A Valkey server of the contest's own, with this service's settings for predictions."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis import Redis

from loadgen.peers.servers.keys import key_of
from loadgen.valkey import Valkey


@contextlib.contextmanager
def store(folder: Path, log: Path) -> Iterator[str]:
    """An empty store; gives its URL. It runs at niceness 0, as this service's own does.

    Raises:
        LoadError: the wheel is missing, or the server does not start.
    """
    with Valkey(folder, log) as server:
        yield server.url


def fill(url: str, answers: Mapping[str, bytes]) -> None:
    """Keep the answer to each text under the peers' key."""
    with contextlib.closing(Redis.from_url(url)) as client, client.pipeline(transaction=False) as pipeline:
        for text, answer in answers.items():
            pipeline.set(key_of(text), answer)
        pipeline.execute()
