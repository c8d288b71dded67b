"""Requests that the allocator cannot decide because of a defect of its own: refused, and everybody else is served."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from spoke.allocator import decide
from spoke.allocator.quarantine import KEPT, Quarantine, Undecidable
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import from_code
from spoke.events import types as e
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.orders import Reject, Welcome, decode_order
from spoke.protocol.server import connect, read_stream
from tests.builders import gang, node_spec
from tests.fakes import eventually
from tests.integration.test_allocator_log import Asker, allocator, register


def raising(*args: object) -> list[e.Event]:
    raise KeyError("a defect")


def impossible(*args: object) -> list[e.Event]:
    """The first event can be folded, the second one cannot."""
    return [e.ClientConnected("somebody", 0, 1_000), e.GangReleased("t-404", ("n1",), final=True)]


@pytest.mark.parametrize(("defect", "words"), [(raising, "a defect"), (impossible, "t-404")])
def test_others_are_served_and_the_log_is_whole(
    server: EmbeddedServer,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    defect: Callable[..., list[e.Event]],
    words: str,
) -> None:
    monkeypatch.setitem(decide._FROM_CLIENTS, r.MoveGang, defect)
    keys = Keys(pool)
    with connect(server.url) as redis, allocator(server.url, pool), caplog.at_level(logging.ERROR):
        register(redis, keys, "n1")
        asker, other = Asker(redis, keys), Asker(redis, keys, "other")
        asked = [other.send(r.AllocateGang(gang(), 0)) for _ in range(3)]
        broken = asker.send(r.MoveGang("t-1", "head"))
        asked += [other.send(r.AllocateGang(gang(), 0)) for _ in range(3)]
        refused = asker.answer_to(broken)
        assert isinstance(refused, p.Failed)
        assert (refused.code, words in refused.reason, "report it" in refused.reason) == ("internal", True, True)
        assert [type(message) for message in other.answers_to(asked)] == [p.Granted] * 4 + [p.Failed] * 2
        assert isinstance(asker.ask(r.MoveGang("t-1", "tail")), p.Failed)  # another one, as broken
        assert isinstance(asker.ask(r.AllocateGang(gang(), 0)), p.Failed)
        assert not verify(EventLog(redis, keys.events, keys.snapshot)).problems
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_an_agent_whose_report_cannot_be_decided_begins_anew(
    server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(pool)
    monkeypatch.setitem(decide._FROM_NODES, r.ReportHealth, raising)
    with connect(server.url) as redis, allocator(server.url, pool):

        def report(request: r.Request) -> None:
            asked = r.Envelope(request, node_id="n1", incarnation="i1")
            redis.xadd(keys.requests, r.encode_request(asked))  # type: ignore[arg-type]

        def told(kind: type) -> bool:
            entries = read_stream(redis, keys.node("n1"), "0-0", block_ms=100)
            return any(isinstance(decode_order(fields).order, kind) for _, fields in entries)

        report(r.RegisterNode(node_spec("n1"), 60_000))
        eventually(lambda: told(Welcome))
        report(r.ReportHealth(()))
        eventually(lambda: told(Reject))


def test_a_client_in_the_allocators_process_is_told_like_any_other() -> None:
    assert str(from_code("internal", "gang.move: the allocator cannot decide it")).startswith("gang.move")


def test_the_quarantine_tells_requests_apart_and_is_bounded() -> None:
    quarantine = Quarantine()
    mine, again = (r.Envelope(r.MoveGang("t-1", "head"), "c", seq) for seq in (1, 2))
    report = r.Envelope(r.RegisterNode(node_spec("n1"), 1_000), node_id="n1", incarnation="i1")
    for asked in (mine, report):
        quarantine.add(Undecidable(asked))
        refused = quarantine.admit(asked)
        assert isinstance(refused, r.Garbage)
        assert (refused.client_id, refused.seq, refused.node_id) == (asked.client_id, asked.seq, asked.node_id)
    assert quarantine.admit(again) is again
    assert isinstance(quarantine.admit(report._replace(incarnation="i2")), r.Envelope)
    for seq in range(3, KEPT + 3):
        quarantine.add(Undecidable(mine._replace(seq=seq)))
    assert quarantine.admit(mine) is mine
