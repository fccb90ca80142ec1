"""What tests of every folder share: the real service, started once for all that ask for it, and torch's threads."""

from collections.abc import Iterator

import pytest

from tests.service import Service


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much `tests.fuzz` sends."""
    parser.addoption("--fuzz-bodies", type=int, default=1000, help="bodies that the fuzz tests send in all")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what they are drawn by")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`intents up` with two ingress replicas and stores of its own; the last test of all stops it."""
    running = Service(tmp_path_factory.mktemp("service"))
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: on layers this small a second costs four times the processor time and saves none."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
