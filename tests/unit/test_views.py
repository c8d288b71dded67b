"""The views: lines that read well, and that programs read back without loss."""

from __future__ import annotations

import json

import pytest

from spoke.allocator.views import node_line, ticket_fields, ticket_line
from spoke.cli.views import ticket_document
from spoke.client.status import NodeStatus, TicketStatus, row_of
from spoke.errors import MalformedData
from spoke.events.model import GangSpec
from spoke.events.moments import moment, ms_at
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


@pytest.mark.parametrize("ms", [0, 1, 999, 1_700_000_000_123, 253_402_300_799_999, 2**62])
def test_a_moment_in_words_is_read_back_exactly(ms: int) -> None:
    assert ms_at(moment(ms)) == ms


def pool_with(*specs: GangSpec) -> MemoryPool:
    pool = MemoryPool()
    pool.register(node_spec("n0", 2))
    pool.connect("c")
    for spec in specs:
        pool.allocate("c", spec, timeout_ms=1_000)
    return pool


def test_a_line_says_what_changes_first_and_leaves_out_what_is_not_so() -> None:
    pool = pool_with(gang(1, 1, gpus=2))
    node = json.loads(node_line(pool.state.nodes["n0"], pool.state))
    assert list(node)[:4] == ["state", "gpus", "gpus_free", "tickets"]
    assert node["gpus_free"] == []
    assert not {"cordon", "labels", "nics", "gpus_shared", "gpus_unhealthy"} & set(node)
    ticket = json.loads(ticket_line(pool.state.tickets["t-1"]))
    assert list(ticket)[:3] == ["state", "since", "nodes"]
    assert not {"ends", "reason", "detached", "priority", "strategy", "cpus_per_actor"} & set(ticket)


def test_lines_are_read_back_as_they_were_meant() -> None:
    pool = pool_with(gang(1, 2, gpus=0.5, cpus=1.5, detached=True, name="7"), gang(1, 2))
    pool.connect("op")
    pool.request("op", r.CordonNode("n0", "its fan rattles"))
    cordon = pool.state.cordons["n0"]
    node = row_of(NodeStatus, "node_id", "n0", node_line(pool.state.nodes["n0"], pool.state))
    assert node.cordon is not None
    assert (node.cordon.state, node.cordon.reason, node.cordon.deadline_ms) == (cordon.phase, "its fan rattles", 0)
    assert f"{node.cordon.since_ms}-0" == cordon.since
    assert (node.gpus, node.memory, node.labels) == (2, 1 << 36, {})
    held, waiting = (
        row_of(TicketStatus, "ticket_id", ticket_id, ticket_line(ticket))
        for ticket_id, ticket in pool.state.tickets.items()
    )
    assert (held.name, held.gpus_per_actor, held.cpus_per_actor, held.detached) == ("7", 0.5, 1.5, True)
    assert f"{held.since_ms}-0" == pool.state.tickets["t-1"].since
    assert (waiting.state, waiting.nodes, waiting.strategy) == ("queued", (), "pack")
    assert "GPU" in waiting.reason


def test_what_can_change_is_written_over_with_nothing() -> None:
    pool = pool_with(gang(1, 1, gpus=2), gang(1, 1, gpus=2))
    before = ticket_fields(pool.state.tickets["t-2"])
    assert before["reason"]
    pool.request("c", r.ReleaseGang("t-1"))
    after = ticket_fields(pool.state.tickets["t-2"])
    assert after["state"] == "allocated"
    assert {"since", "nodes", "reason", "borrowed", "ends"} <= set(before) & set(after)


def test_a_tickets_document_has_all_fields_and_texts_stay_texts() -> None:
    pool = pool_with(gang(1, 1, name="123"))
    raw = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in ticket_fields(pool.state.tickets["t-1"]).items()
    }
    document = ticket_document("t-1", raw)
    assert (document["name"], document["detached"], document["ends_ms"]) == ("123", False, 0)
    assert f"{document['since_ms']}-0" == pool.state.tickets["t-1"].since
    assert [rank["rank"] for rank in document["ranks"]] == [0]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"since":"yesterday"}', b'{"nodes":7}', b'{"cordon":7}'])
def test_a_line_that_is_no_view_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedData, match="of the same release"):
        row_of(TicketStatus, "ticket_id", "t-1", line)
