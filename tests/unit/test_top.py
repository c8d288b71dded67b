"""`spoke top` on a terminal that textual plays: what is seen, what the keys do, how it does with many nodes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from typer.testing import CliRunner

from spoke.cli.main import app as commands
from spoke.cli.sight.actions import Action
from spoke.cli.sight.board import Board, board_of
from spoke.cli.sight.dialogs import Question, Reading
from spoke.cli.sight.pane import Pane
from spoke.cli.sight.screen import Hands, Top
from spoke.cli.sight.tail import Tail
from spoke.cli.sight.tails import News
from spoke.errors import UnknownTicket
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


class Shown:
    """A source of boards that a test sets."""

    def __init__(self, board: Board) -> None:
        self.board = board


class Deeds:
    """Hands that note what they were asked to do."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.ended = self.closed = False

    def act(self, action: Action) -> str:
        self.done.append(action)
        return "done"

    def explain(self, ticket_id: str) -> str:
        if ticket_id == "t-2":
            raise UnknownTicket("nothing is known of t-2")
        return f"{ticket_id} is where it is"

    def hands(self, *, read_only: bool = False) -> Hands:
        return Hands(self.explain, self.logs, act=None if read_only else self.act)

    def logs(self, ticket_id: str, rank: int | None) -> Iterator[News]:
        if ticket_id == "t-2":
            raise UnknownTicket("nothing is known of t-2")
        try:
            yield News(((0, "hello from [red]rank[/red] 0"),), ("rank 1 ran elsewhere",))
            while not self.ended:
                time.sleep(0.01)
                yield News()
            yield News(((0 if rank is None else rank, "goodbye"),))
        finally:
            self.closed = True


def small_pool() -> MemoryPool:
    pool = MemoryPool()
    for node in ("n1", "n2"):
        pool.register(node_spec(node, 4))
    pool.ask("ada.1", r.ConnectClient(10_000, user="ada"))
    pool.allocate("ada.1", gang(1, 2, name="train", preferred_node="n1"))
    pool.allocate("ada.1", gang(1, 2, name="tune", preferred_node="n2"))
    pool.request("ada.1", r.AllocateGang(gang(2, 4, name="big"), None))
    pool.launch("ada.1", "t-1", (0, 1))
    pool.settle()
    return pool


def play(
    board: Board,
    scene: Callable[[Top, Pilot[None]], Awaitable[None]],
    *,
    hands: Hands | None = None,
    size: tuple[int, int] = (80, 24),
) -> None:
    """Run the application on a terminal of this size, and a scene in it."""

    async def run() -> None:
        app = Top(Shown(board), hands or Deeds().hands())
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await scene(app, pilot)

    asyncio.run(run())


def screen(app: Top) -> str:
    """All that is on the terminal, as text."""
    rows = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in rows)


async def until(pilot: Pilot[None], holds: Callable[[], object], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, screen(pilot.app)  # type: ignore[arg-type]
        await pilot.pause(0.02)


def notices(app: Top) -> str:
    return " ".join(notice.message for notice in app._notifications)


@pytest.fixture
def board() -> Board:
    return board_of(small_pool().state, "p")


def test_80_by_24_shows_nodes_gpus_tickets_and_keys(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        lines = screen(app).split("\n")
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        assert "pool p  allocator memory" in lines[0]
        assert "2 nodes  4 of 8 GPUs in use, 4 free  2 tickets, 1 waiting" in lines[1]
        assert any(line.startswith("n1    up     BB··") for line in lines), screen(app)
        assert any(line.startswith("n2    up     CC··") for line in lines), screen(app)
        assert any(line.startswith("B t-1") and "train" in line and "2/2" in line for line in lines), screen(app)
        assert "1 tickets 2   2 queue 1   3 actors 2   4 events" in screen(app)
        assert lines[-1].startswith("q quit  / filter")
        assert "x explain  l logs  ?" in lines[-1]

    play(board, scene)


def test_the_lists_below_follow_the_number_keys(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        assert "why it waits" in screen(app)
        assert "big" in screen(app)
        await pilot.press("3")
        assert "actor-0: Worker" in screen(app)
        await pilot.press("1")
        assert "train" in screen(app)

    play(board, scene, size=(120, 30))


def test_the_cursor_stays_on_its_ticket_when_others_go(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        below = app.query_one("#lower", Pane)
        await pilot.press("down")
        assert below.key == "t-2"
        app.source.board = replace(board, tickets=board.tickets[1:])  # type: ignore[misc]
        await until(pilot, lambda: len(below.listing.lines) == 1)
        assert below.key == "t-2"

    play(board, scene)


def test_a_release_is_asked_about_and_then_done(board: Board) -> None:
    deeds = Deeds()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("r")
        assert isinstance(app.screen, Question)
        assert "Release ticket t-1?" in screen(app)
        await pilot.press("n")
        assert not isinstance(app.screen, Question)
        assert deeds.done == []
        await pilot.press("r", "y")
        await until(pilot, lambda: deeds.done == [Action("release", "t-1")])
        await until(pilot, lambda: "done" in notices(app))

    play(board, scene, hands=deeds.hands())


def test_drain_and_uncordon_take_the_node_under_the_cursor(board: Board) -> None:
    deeds = Deeds()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("shift+tab", "down", "d", "y")
        await until(pilot, lambda: deeds.done == [Action("drain", "n2")])
        await pilot.press("u", "y")
        await until(pilot, lambda: deeds.done[1:] == [Action("uncordon", "n2")])

    play(board, scene, hands=deeds.hands())


def test_read_only_changes_nothing(board: Board) -> None:
    deeds = Deeds()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("r", "y")
        assert not isinstance(app.screen, Question)
        assert "--read-only" in notices(app)

    play(board, scene, hands=deeds.hands(read_only=True))
    assert deeds.done == []


def test_explain_reads_behind_and_shows_errors_too(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("x")
        await until(pilot, lambda: "t-1 is where it is" in screen(app))
        assert isinstance(app.screen, Reading)
        await pilot.press("escape", "down", "x")
        await until(pilot, lambda: "nothing is known of t-2" in screen(app))
        await pilot.press("escape")
        assert not isinstance(app.screen, Reading)

    play(board, scene)


def test_the_output_of_a_ticket_is_followed_until_it_ends(board: Board) -> None:
    deeds = Deeds()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("l")
        await until(pilot, lambda: "[0] hello from [red]rank[/red] 0" in screen(app))
        assert "Output of t-1" in screen(app)
        assert "-- rank 1 ran elsewhere --" in screen(app)
        deeds.ended = True
        await until(pilot, lambda: "the actors have ended" in screen(app))
        assert "[0] goodbye" in screen(app)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Tail))

    play(board, scene, hands=deeds.hands())


def test_the_output_of_one_rank_has_no_prefix_and_is_left_while_it_goes_on(board: Board) -> None:
    deeds = Deeds()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("3", "l")
        await until(pilot, lambda: "hello from" in screen(app))
        assert "Output of t-1, rank 0" in screen(app)
        assert "[0]" not in screen(app)
        await pilot.press("q")
        await until(pilot, lambda: not isinstance(app.screen, Tail))
        await until(pilot, lambda: deeds.closed)

    play(board, scene, hands=deeds.hands())


def test_why_there_is_no_output_is_told_in_its_place(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "l")
        await until(pilot, lambda: "nothing is known of t-2" in screen(app))

    play(board, scene)


def test_the_filter_is_typed_and_left_with_escape(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"n2", "enter")
        assert [line.key for line in app.query_one("#nodes", Pane).listing.lines] == ["n2"]
        assert "only with 'n2'" in screen(app)
        await pilot.press("escape")
        assert len(app.query_one("#nodes", Pane).listing.lines) == 2

    play(board, scene)


def test_a_lost_server_is_shown_and_the_last_board_stays(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        app.source.board = replace(board, problem="no server answers at x")  # type: ignore[misc]
        summary = app.query_one("#summary", Static)
        await until(pilot, lambda: "no server answers at x" in str(summary.render()))
        assert "train" in screen(app)

    play(board, scene)


def test_a_terminal_that_is_too_small_breaks_nothing(board: Board) -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "3", "2", "x", "escape", "question_mark", "escape")

    play(board, scene, size=(20, 6))


def test_a_thousand_nodes_are_redrawn_in_a_blink() -> None:
    pool = MemoryPool()
    spec = node_spec("n", 8)
    for number in range(1000):
        pool.register(replace(spec, node_id=f"n{number:03}"))
    found = board_of(pool.state, "p")

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        nodes = app.query_one("#nodes", Pane)
        assert len(nodes.listing.lines) == 1000
        nodes.focus()
        await pilot.press("end")
        assert nodes.key == "n999"
        await pilot.pause()
        assert "n999" in screen(app)
        took = []
        for number in range(5):
            app.source.board = replace(found, rate=float(number))  # type: ignore[misc]
            began = time.process_time()
            app.draw()
            took.append(time.process_time() - began)
        assert min(took) < 0.2  # of this process' CPU time, however busy the machine is
        began = time.process_time()
        await pilot.press(*["up"] * 20)
        assert nodes.key == "n979"
        assert time.process_time() - began < 2.0

    play(found, scene)


def test_without_textual_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    result = CliRunner().invoke(commands, ["top"])
    assert result.exit_code == 1
    assert "pip install 'spoke-scheduler[top]'" in result.stderr
