"""What a newcomer walks along: the tutorial from an empty directory, the README's tour, a pool on several machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spoke.cli.embedded import free_port, server_binary
from tests.pages import ROOT, Walk

DOCS = ROOT / "docs"


@pytest.mark.timeout(300)
def test_the_tutorial(tmp_path: Path) -> None:
    with Walk(tmp_path / "reader", {"spoke-scheduler": str(ROOT)}) as walk:
        typed = walk.walk(DOCS / "tutorial.md")
    assert len(typed) > 15


def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    with Walk(tmp_path / "reader") as walk:
        (walk.directory / "examples").symlink_to(ROOT / "examples")
        (walk.directory / ".venv").symlink_to(Path(sys.prefix))
        typed = walk.walk(ROOT / "README.md", without="make ")
    assert len(typed) == 7


def test_a_pool_on_several_machines(tmp_path: Path) -> None:
    port = free_port()
    stand_ins = {
        "/etc/spoke": str(tmp_path / "reader/etc"),
        "10.0.0.5:6379": f"127.0.0.1:{port}",
        "bind 10.0.0.5": "bind 127.0.0.1",
        "port 6379": f"port {port}",
        "--gpus auto": "--gpus 4",
    }
    with Walk(tmp_path / "reader", stand_ins) as walk:
        (tmp_path / "reader/etc").mkdir()
        (tmp_path / "reader/etc/redis.conf").write_text((ROOT / "deploy/redis.conf").read_text())
        walk.program("redis-server", server_binary())
        walk.walk(DOCS / "how-to/pool.md")


def test_from_the_cpp_spoke(tmp_path: Path) -> None:
    with Walk(tmp_path / "reader") as walk:
        assert len(walk.walk(DOCS / "how-to/from-cpp-spoke.md")) == 3
