"""The pages that need a server and little else, walked; and no page is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoke.cli.embedded import EmbeddedServer, free_port
from tests.pages import ROOT, Walk, blocks

DOCS = ROOT / "docs"
ELSEWHERE = {"rdma.md": "it installs packages of the system: tests/rdma/run.sh does, and its suite runs spoke doctor"}
ROOM = "--gpus 4 --cpus 64 --memory 512GiB"


@pytest.fixture
def walk(tmp_path: Path, server: EmbeddedServer) -> Walk:
    stand_ins = {
        "--gpus auto": ROOM,
        "/srv/spoke": str(tmp_path / "reader/srv"),
        "/etc/spoke": str(tmp_path / "reader"),
    }
    stand_ins |= {f":{port}": f":{free_port()}" for port in (9464, 9465)}
    return Walk(tmp_path / "reader", stand_ins, variables={"SPOKE_URL": server.url})


def start_allocator(walk: Walk) -> None:
    walk.run("spoke allocator\n", ["leading pool default"], "an allocator's machine")


@pytest.mark.timeout(120)
def test_write_and_launch_actors(walk: Walk) -> None:
    with walk:
        start_allocator(walk)
        page = DOCS / "how-to/actors.md"
        (walk.directory / "my_actors.py").write_text(blocks(page)[0].text)
        walk.run(f"spoke agent {ROOM} --node-id other --import my_actors\n", ["is up in pool"], "another node")
        assert len(walk.walk(page)) == 2


@pytest.mark.timeout(120)
def test_watch_with_prometheus(walk: Walk) -> None:
    with walk:
        assert len(walk.walk(DOCS / "how-to/metrics.md")) == 4


@pytest.mark.timeout(120)
def test_configure_the_server(walk: Walk) -> None:
    with walk:
        start_allocator(walk)
        assert len(walk.walk(DOCS / "how-to/redis.md")) == 3


@pytest.mark.timeout(120)
def test_watch_in_a_browser(walk: Walk) -> None:
    pytest.importorskip("uvicorn")
    with walk:
        start_allocator(walk)
        port = str(free_port())
        walk.stand_ins |= {
            "pip install": "true",
            "spoke web": f"spoke web --port {port}",
            "127.0.0.1:8470": f"127.0.0.1:{port}",
        }
        page = DOCS / "how-to/watch.md"
        typed = walk.walk(page, without="spoke top")  # that wants a terminal: tests/unit/test_top.py has one
    assert len(typed) == 6


def test_the_script_of_the_page_on_ddp_is_that_of_the_readme() -> None:
    def commands(page: Path) -> set[str]:
        return {typed for block in blocks(page) if block.kind == "console" for typed, _ in block.commands()}

    assert commands(DOCS / "how-to/ddp.md") <= commands(ROOT / "README.md"), "which is walked by test_newcomer.py"


def test_every_page_with_commands_is_named_by_a_test() -> None:
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/*/test_*.py"))
    pages = [page for page in DOCS.glob("how-to/*.md") if any(block.kind == "console" for block in blocks(page))]
    assert [page.name for page in pages if page.name not in tests and page.name not in ELSEWHERE] == []
