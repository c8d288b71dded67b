"""Fixtures shared by all suites: a real server of its own, and a pool name that nobody else uses."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoke.cli.embedded import EmbeddedServer

pytest_plugins = ["tests.leftovers"]

for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # as under nohup: the processes that tests start would inherit it
        signal.signal(_number, _usual)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all tests that leave it as they found it."""
    with EmbeddedServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server for one test, which may kill and restart it."""
    with EmbeddedServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def pool() -> str:
    """A pool of its own for each test, so that tests can share a server."""
    return f"test-{uuid.uuid4().hex[:8]}"
