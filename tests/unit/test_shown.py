"""What a person sees of gangs, tickets and pools in a notebook and at a prompt, and the line while one waits."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
import threading
import types
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from spoke.client import progress
from spoke.client.known import KnownGang
from spoke.client.status import CordonStatus, NodeStatus, PoolStatus, TicketStatus
from spoke.client.tracking import Ticket
from spoke.events.model import GangSpec, Resources
from spoke.protocol.explanation import Explanation, Holder, NodeReason
from spoke.protocol.html import ROWS_MAX, html_table
from spoke.protocol.replies import ActorInfo
from tests.fakes import slots_of

EVIL = '<script>alert("1")</script>'


class Cells(HTMLParser):
    """The tags of a document, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def cells(value: Any) -> Cells:
    found = Cells(value._repr_html_())
    assert "script" not in found.tags, "what users name is escaped"
    return found


CORDON = CordonStatus("cordoned", "ops", EVIL)
NODE = NodeStatus(
    node_id="n0",
    state="cordoned",
    gpus=8,
    gpus_free=(1, 2),
    gpus_unhealthy={"3": EVIL},
    cpus=64,
    cpus_free=60.5,
    memory=1 << 36,
    memory_free=1 << 35,
    tickets=("t-1",),
    cordon=CORDON,
)
TICKET = TicketStatus("t-1", "active", EVIL, "c-1", "2x2", 4, 0.5, nodes=("n0", "n1"), since_ms=1_700_000_000_000)
WAITING = TicketStatus("t-2", "queued", gang="1x8", actors=8, gpus_per_actor=1, reason="needs 1 node with 8 GPUs free")


def test_a_pool_is_two_tables() -> None:
    pool = PoolStatus("default", "vm:1:ab", (NODE,), (TICKET, WAITING))
    found = cells(pool)
    assert found.tags.count("table") == 2
    assert {"n0", "2 of 8", "60.5 of 64", "32 of 64 GiB", "t-1", "0.5", "2023-11-14T22:13:20.000Z"} <= set(found.texts)
    assert f"{EVIL}; GPU 3: {EVIL}" in found.texts
    assert "needs 1 node with 8 GPUs free" in found.texts
    assert repr(pool) == "<PoolStatus default: 1 nodes, 0 of 0 GPUs free, 2 tickets, led by vm:1:ab>"
    assert cells(PoolStatus("p", "", (), ())).texts == ["p: 0 nodes, 0 of 0 GPUs free, 0 tickets, no allocator"]


def test_rows_in_plain_text() -> None:
    assert repr(NODE) == "<NodeStatus n0 cordoned, 2 of 8 GPUs free>"
    assert repr(WAITING) == "<TicketStatus t-2 queued 1x8: needs 1 node with 8 GPUs free>"
    assert repr(TICKET) == f"<TicketStatus t-1 active 2x2 {EVIL!r} on n0, n1>"
    assert cells(NODE).tags.count("tr") == cells(TICKET).tags.count("tr") == 2


def test_why_a_gang_waits_as_a_table() -> None:
    node = NodeReason("n0", 1, 2, 1.0, 4.0, 1 << 30, gpus_missing=1.0, holders=(Holder("t-1", "", EVIL, 1.0, 0, 0),))
    why = Explanation("t-2", "queued", "it needs <2> GPUs", place=1, waiting=3, nodes=(node,), starts="in 5 minutes")
    found = cells(why)
    assert {"it needs <2> GPUs (1 of 3 in line)", "1 of 2", "1 GPU", f"t-1 ({EVIL})", "in 5 minutes"} <= set(
        found.texts
    )
    assert repr(why) == "<Explanation of t-2 (queued, 1 of 3 in line): it needs <2> GPUs>"


def test_a_gang_rank_by_rank() -> None:
    spec = GangSpec(2, 2, Resources(gpus=1), name="resnet", detached=True)
    ticket = Ticket("t-1", spec, slots_of(spec), "127.0.0.1", 20_000)
    for rank, phase, code, signal in ((0, "running", 0, 0), (1, "exited", 3, 0), (2, "exited", -1, 9)):
        ticket.saw([ActorInfo(rank, f"a{rank}", "n0", f"1-{rank}", phase, 4000 + rank, code=code, signal=signal)])
    gang = KnownGang(ticket)
    found = cells(gang)
    assert found.tags.count("tr") == 5
    assert {"a0", "running", "4000", "code 3", "signal 9", "not launched"} <= set(found.texts)
    assert repr(gang) == "<KnownGang t-1 'resnet': 4 slots on n0, n1>"
    ticket.releasing = "its time was over"
    assert "releasing: its time was over" in repr(gang)
    ticket.end()
    assert "released" in repr(gang)


def test_a_table_is_bounded() -> None:
    html = html_table(("n",), ((number,) for number in range(ROWS_MAX + 1_000)))
    assert html.count("<tr>") == ROWS_MAX + 1
    assert "and 1,000 more" in html


# --- the line ---


class Clock:
    """Waits that take no time: each look lets its pause pass."""

    def __init__(self, done_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._done_at = 100.0, 100.0 + done_at
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def done(self, pause: float) -> bool:
        self.now += pause
        return self.now >= self._done_at


class Shown:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.clears = 0

    def show(self, text: str) -> None:
        self.lines.append(text)

    def clear(self) -> None:
        self.clears += 1


def test_the_line_is_shown_twice_a_second_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = Clock(2.0, monkeypatch), Shown()
    assert progress.watch(clock.done, lambda: "t-2 waits", line, None) is None
    assert line.lines[0] == "1 s, t-2 waits (Ctrl-C ends the wait)"
    assert (len(line.lines), line.clears) == (4, 1)


def test_the_time_that_is_left_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = Clock(1e9, monkeypatch), Shown()
    assert progress.watch(clock.done, lambda: "x", line, 1.2) == 0.0
    assert clock.now == pytest.approx(101.2)
    assert line.clears == 1


def test_an_interrupt_leaves_no_line_behind() -> None:
    line = Shown()

    def interrupted(pause: float) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        progress.watch(interrupted, lambda: "x", line, None)
    assert (len(line.lines), line.clears) == (1, 1)


def test_a_line_of_text_fits_the_terminal_and_obeys_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    line = progress.TextLine(out)
    line.show("a\x1b[2Jb\n" + "x" * 50)
    line.clear()
    assert out.getvalue() == "\r\x1b[Ka?[2Jb?xxxxxxxxxxx…\r\x1b[K"


def test_a_line_in_a_notebook_is_one_output_that_is_updated() -> None:
    shown: list[Any] = []

    def display(data: Any, *, raw: bool, display_id: str, update: bool) -> None:
        assert raw
        shown.append((data["text/html"], display_id, update))

    line = progress.HtmlLine(display)
    line.show("a < b")
    line.show("c")
    line.clear()
    assert [one[0] for one in shown] == ["<i>a &lt; b</i>", "<i>c</i>", ""]
    assert len({one[1] for one in shown}) == 1
    assert [one[2] for one in shown] == [False, True, True]


def test_a_line_in_a_notebook_goes_also_when_ctrl_c_comes_while_it_is_first_shown() -> None:
    shown: list[str] = []

    def display(data: Any, **_: object) -> None:
        shown.append(data["text/plain"])
        if len(shown) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        progress.watch(lambda pause: False, lambda: "t-1 waits", progress.HtmlLine(display), None)
    assert shown[-1] == ""


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.delenv("SPOKE_PROGRESS", raising=False)
        patch.delattr(sys, "ps1", raising=False)
        yield
    os.close(ours)


def test_only_where_a_person_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch):
        _look(monkeypatch)


def _look(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.find_line() is None, "a script shows nothing"
    monkeypatch.setenv("SPOKE_PROGRESS", "1")
    assert isinstance(progress.find_line(), progress.TextLine)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(progress.find_line()))
    thread.start()
    thread.join()
    assert found == [None]
    monkeypatch.setenv("SPOKE_PROGRESS", "0")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert progress.find_line() is None
    monkeypatch.delenv("SPOKE_PROGRESS")
    assert isinstance(progress.find_line(), progress.TextLine)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.find_line() is None, "a pipe"


def test_a_notebook_is_known_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=print))  # type: ignore[arg-type]
    assert isinstance(progress.find_line(), progress.HtmlLine)
