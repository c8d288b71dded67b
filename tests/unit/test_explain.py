"""Why a ticket waits, was refused, or is where it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.allocator import explain as ex
from spoke.allocator import forecast as fc
from spoke.allocator.placement.choose import never_fits, place
from spoke.allocator.placement.pack import NoFit
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.model import GangSpec
from spoke.events.state import TicketState
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.explanation import Explanation
from tests.builders import MemoryPool, gang, node_spec


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    for node in ("n1", "n2", "n3"):
        pool.register(node_spec(node, 4))
    pool.ask("ada.1", r.ConnectClient(10_000, user="ada"))
    pool.ask("bob.1", r.ConnectClient(10_000, user="bob"))
    return pool


def take(pool: MemoryPool, node: str, gpus: int, client: str = "ada.1") -> str:
    pool.allocate(client, gang(1, 1, gpus, preferred_node=node))
    return f"t-{pool.state.next_ticket - 1}"


def wait(pool: MemoryPool, spec: GangSpec, client: str = "bob.1") -> str:
    assert pool.answer(client, pool.request(client, r.AllocateGang(spec, None))) is None
    return f"t-{pool.state.next_ticket - 1}"


def told(pool: MemoryPool, ticket: str) -> Explanation:
    return ex.explain(pool.state, pool.state.tickets[ticket], pool.now_ms)


def test_it_says_what_is_missing_where_and_who_holds_it(pool: MemoryPool) -> None:
    take(pool, "n1", 1)
    take(pool, "n2", 3)
    take(pool, "n3", 2, "bob.1")
    found = told(pool, wait(pool, gang(2, 2, 2)))
    assert found.sentence == (
        "t-4 waits: it needs 2 nodes with 2 members, 2 GPUs each, and 2 more of 2 nodes cannot be placed; "
        "3 GPUs would have to be freed on n1, n3, held by t-1 (ada), t-3 (bob). Start: unknown: no ticket that holds "
        "places says how long it will take"
    )
    assert [(row.node_id, row.fits, row.wanted, row.gpus_free, row.gpus_missing) for row in found.nodes] == [
        ("n1", 1, 2, 3.0, 1.0),
        ("n3", 1, 2, 2.0, 2.0),
    ]
    (holder,) = found.nodes[0].holders
    assert (holder.ticket_id, holder.user, holder.gpus) == ("t-1", "ada", 1.0)
    assert (found.place, found.waiting, found.gpus_missing) == (1, 1, 3.0)
    assert str(found).splitlines()[1] == "  n1: 1 of 2 members fit, 1 GPU missing; held by t-1 (ada): 1 GPU"


def test_a_dense_gang_lacks_members(pool: MemoryPool) -> None:
    take(pool, "n1", 4)
    take(pool, "n2", 3)
    found = told(pool, wait(pool, gang(7, 1, 1, strict_pack=False)))
    assert "2 members cannot be placed; 2 GPUs would have to be freed on n1, held by t-1 (ada)" in found.sentence


def test_cpus_and_memory_may_be_what_is_missing(pool: MemoryPool) -> None:
    for node in ("n1", "n2", "n3"):
        pool.allocate("ada.1", gang(1, 1, 0, cpus=60.0, preferred_node=node))
    found = told(pool, wait(pool, gang(1, 1, 1, cpus=10.0)))
    assert "6 CPUs would have to be freed on n1, held by t-1 (ada)" in found.sentence
    assert (found.gpus_missing, found.cpus_missing) == (0, 6)


def test_named_gpus_and_shares(pool: MemoryPool) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 3)
    named = told(pool, wait(pool, gang(1, 2, 1, gpu_ids=(2, 3))))
    assert "1 GPU would have to be freed on n1" in named.sentence
    pool.ask("bob.1", r.ReleaseGang(named.ticket_id))
    shares = told(pool, wait(pool, gang(1, 6, 0.25)))
    assert "0.5 GPUs would have to be freed on n1, held by t-1 (ada)" in shares.sentence


def test_one_that_fits_waits_behind_those_that_came_first(pool: MemoryPool) -> None:
    take(pool, "n1", 1)
    first = wait(pool, gang(3, 1, 4))
    found = told(pool, wait(pool, gang(1, 1, 1)))
    assert found.sentence.startswith(f"t-3 would fit now, but waits behind {first}, which comes first in line")
    assert (found.place, found.waiting, found.behind) == (2, 2, (first,))
    assert found.nodes == ()


def test_what_never_fits_and_what_does_not_count_is_said(pool: MemoryPool) -> None:
    pool.ask("bob.1", r.CordonNode("n3"))
    pool.ask("bob.1", r.MarkGpu("n2", 0, False))
    pool.expire_node("n1")
    found = told(pool, wait(pool, gang(1, 1, 4)))
    assert "cannot fit the pool as it is registered" in found.sentence
    assert found.starts == "never, with the nodes that are registered and in service"
    assert found.left_out == ("node n1 is lost", "node n2 has unhealthy GPUs: 0", "node n3 is cordoned")


def test_a_granted_ticket_says_why_it_is_where_it_is(pool: MemoryPool) -> None:
    take(pool, "n2", 2)
    before = snapshot.copy(pool.state)
    pool.allocate("bob.1", gang(1, 1, 1))
    found = ex.explain_grant(before, pool.state.tickets["t-2"])
    assert found.sentence == (
        "t-2 is on n2, placed by pack/1 (the tightest nodes that fit, so that large gaps stay large); 3 nodes had room "
        "for 1 member, the tightest that was not taken is n1 with 4 GPUs, 64 CPUs, 64 GiB free"
    )
    assert [(row.node_id, row.gpus_free) for row in found.nodes] == [("n2", 2.0)]
    assert "t-2 is allocated on n2" in told(pool, "t-2").sentence


def test_a_refusal_says_who_holds_what_is_missing(pool: MemoryPool) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 1)
    failed = pool.allocate("bob.1", gang(1, 1, 4))
    assert isinstance(failed, p.Failed)
    assert failed.reason.endswith("; 1 GPU would have to be freed on n1, held by t-1 (ada)")
    refused = pool.log[-1].event
    assert isinstance(refused, e.GangRefused)
    found = ex.explain_spec(pool.state, refused.spec, "", "refused", refused.reason)
    assert found.sentence.startswith("the gang was refused: needs 1 node with 4 GPUs free")
    assert [row.node_id for row in found.nodes] == ["n1"]


def test_a_client_asks_and_the_log_keeps_that_it_did(pool: MemoryPool) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 1)
    ticket = wait(pool, gang(1, 1, 4))
    answer = pool.ask("bob.1", r.ExplainGang(ticket))
    assert isinstance(answer, p.Explained)
    assert answer.explanation == told(pool, ticket)
    assert p.decode_message(p.encode_message(answer)) == answer
    assert pool.log[-1].event == e.GangExplained(ticket, "bob.1", pool.seqs["bob.1"])
    unknown = pool.ask("bob.1", r.ExplainGang("t-99"))
    assert isinstance(unknown, p.Failed)
    assert unknown.code == "unknown_ticket"


# --- when it would start -----------------------------------------------------------------------------------------


def expect(monkeypatch: pytest.MonkeyPatch, ends: dict[str, int]) -> None:
    """These tickets are expected to end at these times, the others do not say."""

    def end_of(ticket: TicketState) -> int | None:
        return ends.get(ticket.ticket_id) if ticket.slots else None

    monkeypatch.setattr(fc, "expected_end_ms", end_of)
    monkeypatch.setattr(ex, "expected_end_ms", end_of)


def test_it_starts_when_enough_of_those_before_it_have_ended(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 1)
    now = pool.now_ms
    expect(monkeypatch, {"t-1": now + 600_000, "t-2": now + 60_000, "t-3": now + 300_000})
    ticket = wait(pool, gang(2, 1, 4))
    before = snapshot.encode(pool.state)
    found = told(pool, ticket)
    assert found.starts_ms == now + 300_000
    assert found.starts.startswith("in 4 minutes, by the expected durations")
    assert {one.ends_ms for row in found.nodes for one in row.holders} == {now + 60_000, now + 300_000}
    assert snapshot.encode(pool.state) == before


def test_those_ahead_in_line_take_their_turn_first(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 4)
    now = pool.now_ms
    first, second = wait(pool, gang(1, 1, 4)), wait(pool, gang(1, 1, 4))
    expect(monkeypatch, {"t-1": now + 10_000, first: now + 50_000, "t-2": now + 90_000})
    assert told(pool, first).starts_ms == now + 10_000
    assert told(pool, second).starts_ms == now + 50_000


def test_nobody_knows_while_one_that_is_needed_does_not_say(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 1)
    expect(monkeypatch, {"t-1": pool.now_ms + 1_000})
    found = told(pool, wait(pool, gang(2, 1, 4)))
    assert (found.starts_ms, found.starts) == (0, "unknown: t-2, t-3 did not say how long they will take")


def test_its_own_time_limit_may_come_first(pool: MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in ("n1", "n2", "n3"):
        take(pool, node, 1)
    expect(monkeypatch, {"t-1": pool.now_ms + 10_000})
    pool.request("bob.1", r.AllocateGang(gang(1, 1, 4), 5_000))
    assert told(pool, "t-4").starts == "its own time limit comes before"


# --- it is enough ------------------------------------------------------------------------------------------------


@given(
    taken=st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.sampled_from([1, 2, 0.25, 0.5]))),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 0.25, 0.6])),
    strict=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_it_names_is_enough(taken: list[tuple[str, float]], shape: tuple[int, int, float], strict: bool) -> None:
    """When all that holds places on the named nodes is released, the gang fits; and without that it does not."""
    pool = MemoryPool()
    for node in ("n1", "n2", "n3"):
        pool.register(node_spec(node, 4))
    pool.connect("c")
    for node, gpus in taken:
        pool.allocate("c", gang(1, 1, gpus, preferred_node=node))
    spec = gang(*shape, strict_pack=strict)
    if never_fits(pool.state, spec) or not isinstance(place(pool.state, spec)[0], NoFit):
        return
    found = ex.explain_spec(pool.state, spec, "", "refused", "")
    assert found.nodes
    assert found.gpus_missing > 0
    for ticket in {one.ticket_id for row in found.nodes for one in row.holders}:
        pool.ask("c", r.ReleaseGang(ticket))
    assert not isinstance(place(pool.state, spec)[0], NoFit)
