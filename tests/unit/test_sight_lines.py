"""What the live views show: a folded state as a board, and a board as lines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spoke.cli.sight.board import Board, GpuCell, board_of
from spoke.cli.sight.lines import cell_part, listing, mark_of, summary
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec
from tests.golden import first_hours


@pytest.fixture
def pool() -> MemoryPool:
    """Two nodes: t-1 holds two GPUs of n1, t-2 a quarter of another, t-3 waits for more than there is."""
    pool = MemoryPool()
    for node in ("n1", "n2"):
        pool.register(node_spec(node, 4))
    pool.ask("ada.1", r.ConnectClient(10_000, user="ada"))
    pool.allocate("ada.1", gang(1, 2, name="train", preferred_node="n1"))
    pool.allocate("ada.1", gang(1, 1, 0.25, preferred_node="n1"))
    pool.request("ada.1", r.AllocateGang(gang(2, 4, name="big"), None))
    pool.launch("ada.1", "t-1", (0, 1))
    pool.settle()
    return pool


def board(pool: MemoryPool) -> Board:
    return board_of(pool.state, "p")


def texts(found: Board, view: str, wanted: str = "") -> list[str]:
    return [line.text for line in listing(found, view, wanted).lines]  # type: ignore[arg-type]


def test_every_gpu_shows_who_holds_it(pool: MemoryPool) -> None:
    n1, n2 = board(pool).nodes
    assert n1.gpus == (GpuCell("held", "t-1"), GpuCell("held", "t-1"), GpuCell("shared", "t-2"), GpuCell("free"))
    assert n2.gpus == (GpuCell("free"),) * 4
    assert (n1.gpus_free, n2.gpus_free, n1.tickets) == (1, 4, ("t-1", "t-2"))


def test_the_cells_add_up_to_what_the_state_counts() -> None:
    state = first_hours().state
    for row in board_of(state, "p").nodes:
        assert sum(cell.kind == "free" for cell in row.gpus) == state.nodes[row.key].free_gpus.bit_count()


def test_an_unhealthy_gpu_is_seen_and_its_node_says_why(pool: MemoryPool) -> None:
    pool.ask("ada.1", r.MarkGpu("n2", 1, False, "fell off the bus"))
    row = board(pool).nodes[1]
    assert [cell.kind for cell in row.gpus] == ["free", "unhealthy", "free", "free"]
    assert "fell off the bus" in row.remark
    assert cell_part(row.gpus[1])[0] == "!"


def test_a_drained_node_says_who_asked(pool: MemoryPool) -> None:
    pool.ask("ada.1", r.DrainNode("n2", None, "new fans", False))
    found = board(pool)
    assert (found.nodes[1].state, found.nodes[1].remark) == ("drained", "drained by ada: new fans")
    assert found.gpus_free == 1  # those of n1: nothing new comes to n2
    assert "new fans" in texts(found, "nodes")[1]


def test_a_waiting_ticket_is_in_the_queue_with_its_place_and_its_reason(pool: MemoryPool) -> None:
    found = board(pool)
    assert [row.key for row in found.tickets] == ["t-1", "t-2"]
    assert [(row.key, row.place, row.name) for row in found.queue] == [("t-3", 1, "big")]
    assert "qualif" in found.queue[0].reason
    assert found.queue[0].reason in texts(found, "queue")[0]


def test_actors_are_shown_with_their_gpus_and_their_ends(pool: MemoryPool) -> None:
    agent = pool.agents["n1"]
    pool.end(agent, min(agent.processes), code=3)
    first, second = board(pool).actors
    assert (first.state, first.end, first.gpus) == ("exited", "code 3", "0")
    assert (second.state, second.pid, second.node) == ("running", 4711, "n1")
    assert (board(pool).tickets[0].running, board(pool).tickets[0].actors) == (1, 2)


def test_a_ticket_has_one_mark_in_its_line_and_on_its_gpus(pool: MemoryPool) -> None:
    found = board(pool)
    line = listing(found, "tickets").lines[0]
    assert line.parts[0] == mark_of("t-1") == cell_part(found.nodes[0].gpus[0])
    assert mark_of("t-1") != mark_of("t-2")
    assert cell_part(found.nodes[0].gpus[2])[1].endswith("underline")


def test_the_filter_keeps_lines_in_which_the_text_occurs(pool: MemoryPool) -> None:
    found = board(pool)
    assert [line.key for line in listing(found, "nodes", "N2").lines] == ["n2"]
    assert [line.key for line in listing(found, "nodes", "t-1").lines] == ["n1"]
    assert [line.key for line in listing(found, "tickets", "train").lines] == ["t-1"]
    assert [line.key for line in listing(found, "actors", "actor-1").lines] == ["t-1/1"]
    assert texts(found, "queue", "no such thing") == []


def test_what_users_name_cannot_steer_the_terminal(pool: MemoryPool) -> None:
    pool.ask("ada.1", r.CordonNode("n2", "x\x1b[2Jy"))
    shown = "".join(texts(board(pool), "nodes"))
    assert "\x1b" not in shown
    assert "\\x1b[2Jy" in shown


def test_the_summary_counts_and_says_what_is_wrong(pool: MemoryPool) -> None:
    found = replace(board(pool), rate=12.0)
    lines = ["".join(text for text, _ in parts) for parts in summary(found)]
    assert "allocator memory" in lines[0]
    assert "12.0 events/s" in lines[0]
    assert "2 nodes  3 of 8 GPUs in use, 5 free  2 tickets, 1 waiting  1 client" in lines[1]
    assert "nothing is decided" in summary(replace(found, allocator=""))[0][2][0]
    assert summary(replace(found, problem="no server\nat all"))[2][0][0] == "no server"
