"""The queue: order, fair shares, quotas, time limits, backfill, preemption and reservations, one rule at a time."""

from __future__ import annotations

from typing import Any

import pytest

from spoke.allocator.decide import decide, tick
from spoke.allocator.queue.fair import SHARE, dominant_share, totals
from spoke.allocator.queue.order import in_order
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.codec import decode_event
from spoke.events.fold import fold
from spoke.events.model import GangSpec
from spoke.events.queueing import Account, QueuePolicy, Quota, decay
from spoke.events.snapshot import decode, encode
from spoke.events.terms import Terms
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Kind, Signer
from tests.builders import MemoryPool, gang, node_spec

HOUR = 3_600_000


def pool_of(*gpus: int, clients: tuple[str, ...] = ("c",), **policy: Any) -> MemoryPool:
    """Nodes n1, n2, … with so many GPUs, and connected clients."""
    pool = MemoryPool()
    for number, count in enumerate(gpus, start=1):
        pool.register(node_spec(f"n{number}", count))
    for client in clients:
        pool.ask(client, r.ConnectClient(10_000, user=client))
    if policy:
        pool.ask(clients[0], r.SetQueuePolicy(QueuePolicy(**policy)))
    return pool


def asks(pool: MemoryPool, gpus: int, *, nodes: int = 1, client: str = "c", wait: bool = True, **terms: Any) -> str:
    """Ask for a gang of one actor with ``gpus`` GPUs on each node; the ticket's id."""
    ticket_id = f"t-{pool.state.next_ticket}"
    pool.allocate(client, gang(nodes, 1, gpus, terms=Terms(**terms)), None if wait else 0)
    return ticket_id


def runs(pool: MemoryPool, ticket_id: str) -> bool:
    ticket = pool.state.tickets.get(ticket_id)
    return ticket is not None and ticket.phase in ("allocated", "active")


def end(pool: MemoryPool, ticket_id: str) -> None:
    pool.ask(pool.state.tickets[ticket_id].client_id, r.ReleaseGang(ticket_id))


def order_of(pool: MemoryPool) -> list[str]:
    return [found.ticket.ticket_id for found in in_order(pool.state, pool.now_ms)]


def kinds(pool: MemoryPool, ticket_id: str) -> list[str]:
    return [x.event.TYPE for x in pool.log if getattr(x.event, "ticket_id", "") == ticket_id]


# --- terms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms", [{"priority": 2_000_000}, {"expected_ms": -1}, {"max_ms": 1 << 60}, {"project": "a b"}, {"priority": True}]
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Terms(**terms)


def test_a_ticket_counts_for_the_project_it_names_else_its_clients_else_the_user() -> None:
    pool = pool_of(4)
    pool.ask("d", r.ConnectClient(10_000, user="dora", project="vision"))
    named, clients, users = asks(pool, 1, client="d", project="nlp"), asks(pool, 1, client="d"), asks(pool, 1)
    assert [pool.state.tickets[t].project for t in (named, clients, users)] == ["nlp", "vision", "c"]
    assert pool.state.queueing.held("vision") == (1000, 0, 0, 1)


def test_events_of_older_releases_still_decode() -> None:
    raw = {
        b"type": b"gang.queued",
        b"v": b"1",
        b"ticket_id": b"t-1",
        b"client_id": b"c",
        b"seq": b"1",
        b"spec": b'{"num_nodes":1,"actors_per_node":1,"resources":{"gpus":1,"cpus":0.0,"memory":0,"gpu_memory":0}}',
        b"deadline_ms": b"0",
        b"reason": b"",
    }
    event = decode_event("1-0", raw).event
    assert isinstance(event, e.GangQueued)
    assert event.spec == GangSpec(1, 1, gang(1, 1, 1).resources)
    assert event.spec.terms == Terms()


def test_a_snapshot_of_an_older_release_opens_the_accounts() -> None:
    pool = pool_of(4)
    asks(pool, 3)
    pool.state.queueing.accounts.clear()
    pool.state.tickets["t-1"].project = ""
    state = decode(encode(pool.state))
    assert state.queueing.held("c") == (3000, 0, 0, 1)


# --- max_duration ------------------------------------------------------------------------------------------------


def test_a_ticket_is_told_before_its_max_duration_is_over_and_released_then() -> None:
    pool = pool_of(2, notice_ms=10_000)
    ticket = asks(pool, 1, max_ms=60_000)
    pool.launch("c", ticket, (0,))
    pool.settle()
    pool.pass_time(49_000)
    assert "ticket.expiring" not in kinds(pool, ticket)
    pool.pass_time(1_100)
    (told,) = [n for n in pool.notices["c"] if isinstance(n, p.TicketNotice)]
    assert (told.notice.kind, told.notice.ranks) == ("expiring", (0,))
    assert any(isinstance(d.order, o.NotifyActors) for d in pool.agents["n1"].orders)
    assert runs(pool, ticket)
    pool.pass_time(10_000)
    assert pool.state.tickets[ticket].reason == "its max_duration of 60 s is over"
    pool.settle()
    assert pool.state.tickets == {}
    assert kinds(pool, ticket).count("ticket.expiring") == 1


def test_a_short_max_duration_has_its_notice_in_the_middle() -> None:
    pool = pool_of(2)
    ticket = asks(pool, 1, max_ms=2_000)
    pool.pass_time(1_100)
    assert "ticket.expiring" in kinds(pool, ticket)
    pool.pass_time(1_000)
    assert pool.state.tickets == {}


# --- order -------------------------------------------------------------------------------------------------------


def test_of_two_waiting_gangs_the_one_of_higher_priority_goes_first() -> None:
    pool = pool_of(2)
    holder, low, high = asks(pool, 2), asks(pool, 2), asks(pool, 2, priority=5)
    assert order_of(pool) == [high, low]
    end(pool, holder)
    assert runs(pool, high)
    assert not runs(pool, low)


def test_fifo_knows_no_priority_and_the_policy_changes_live() -> None:
    pool = pool_of(2, order="fifo")
    asks(pool, 2)
    low, high = asks(pool, 2), asks(pool, 2, priority=5)
    assert order_of(pool) == [low, high]
    pool.ask("c", r.SetQueuePolicy(QueuePolicy("priority")))
    assert order_of(pool) == [high, low]
    assert pool.log[-1].event == e.QueuePolicyChanged("c", pool.seqs["c"], QueuePolicy("priority"))


def test_a_new_gang_of_higher_priority_need_not_wait_behind_others() -> None:
    pool = pool_of(2, backfill=False)
    asks(pool, 1)
    big = asks(pool, 2)
    assert not runs(pool, asks(pool, 1))
    urgent = asks(pool, 1, priority=1, wait=False)
    assert runs(pool, urgent)
    assert not runs(pool, big)


def test_what_an_operator_moved_to_the_head_comes_before_all_priorities() -> None:
    pool = pool_of(2)
    asks(pool, 2)
    low, high = asks(pool, 2), asks(pool, 2, priority=5)
    pool.ask("c", r.MoveGang(low, "head"))
    assert order_of(pool) == [low, high]
    pool.check_replay(len(pool.log) // 2)
    assert [k[3] for k in decode(encode(pool.state)).waiting.ordered(by_priority=True)] == [low, high]


def test_a_ticket_gets_another_priority_while_it_waits() -> None:
    pool = pool_of(2)
    asks(pool, 2)
    first, second = asks(pool, 2), asks(pool, 2)
    assert isinstance(pool.ask("c", r.PrioritizeGang(second, 3)), p.Done)
    assert order_of(pool) == [second, first]
    assert pool.state.tickets[second].spec.terms.priority == 3


def test_the_grant_records_the_policy() -> None:
    pool = pool_of(2)
    asks(pool, 1)
    (granted,) = [x.event for x in pool.log if isinstance(x.event, e.GangAllocated)]
    assert (granted.order, granted.borrowed) == ("priority/1", False)


def test_gangs_that_the_pool_cannot_hold_wait_aside_until_it_grows() -> None:
    pool = pool_of(2)
    large = asks(pool, 4)
    assert runs(pool, asks(pool, 2))
    assert large in pool.state.waiting.aside
    pool.register(node_spec("big", 4))
    assert runs(pool, large)


# --- fair shares -------------------------------------------------------------------------------------------------


def test_decay_halves_in_a_half_life_and_is_a_whole_number() -> None:
    assert decay(0, 1000) == 1 << 64
    assert decay(1000, 1000) == 1 << 63
    assert abs(decay(500, 1000) / 2**64 - 2**-0.5) < 1e-9
    assert abs(decay(1234, 5000) / 2**64 - 2 ** (-1234 / 5000)) < 1e-4
    assert decay(10**9, 1) == 0


def test_the_average_moves_to_what_is_held() -> None:
    account = Account()
    account.change((4000, 0, 0, 1), 1, 0, 1000)
    assert account.averages_at(1000, 1000)[0] >> 16 == 2000
    assert account.averages_at(20_000, 1000)[0] >> 16 in (3999, 4000)
    account.change((4000, 0, 0, 1), -1, 1000, 1000)
    assert account.averages_at(2000, 1000)[0] >> 16 == 1000


def test_the_share_of_the_dominant_resource_counts() -> None:
    """90 CPUs and 18 GPUs: 1 GPU is more of the pool than 1 CPU."""
    pool = pool_of(9, 9)
    for node in pool.state.nodes.values():
        assert node.spec.cpu_milli == 64_000
    asks(pool, 1, project="gpus")
    pool.allocate("c", gang(1, 1, 0, cpus=4.0, terms=Terms(project="cpus")))
    of = totals(pool.state)
    now = pool.now_ms
    assert dominant_share(pool.state, "gpus", of, now) * 18 // SHARE in (1, 0)
    assert dominant_share(pool.state, "gpus", of, now) > dominant_share(pool.state, "cpus", of, now)
    pool.ask("c", r.SetQuota(Quota("gpus", weight=4)))
    assert dominant_share(pool.state, "gpus", of, now) < dominant_share(pool.state, "cpus", of, now)


def test_in_a_fair_order_who_has_less_goes_first() -> None:
    pool = pool_of(4, clients=("a", "b"), order="fair", backfill=False)
    holders = [asks(pool, 1, client="a") for _ in range(4)]
    pool.pass_time(10 * 24 * HOUR)
    waiting = [asks(pool, 1, client="a") for _ in range(3)] + [asks(pool, 1, client="b") for _ in range(3)]
    for holder in holders:
        end(pool, holder)
    granted = [pool.state.tickets[t].client_id for t in waiting if runs(pool, t)]
    assert sorted(granted) == ["a", "b", "b", "b"]  # b makes up for what a had


# --- quotas ------------------------------------------------------------------------------------------------------


def test_a_project_may_have_more_than_its_quota_while_that_is_idle() -> None:
    pool = pool_of(4)
    pool.ask("c", r.SetQuota(Quota("vision", 2_000)))
    own, more = asks(pool, 2, project="vision"), asks(pool, 2, project="vision")
    assert runs(pool, own)
    assert runs(pool, more)
    assert [pool.state.tickets[t].borrowed for t in (own, more)] == [False, True]


def test_a_project_that_may_not_borrow_waits_and_holds_up_nobody_else() -> None:
    pool = pool_of(4)
    pool.ask("c", r.SetQuota(Quota("vision", 2_000, borrow=False)))
    first, second = asks(pool, 2, project="vision"), asks(pool, 1, project="vision")
    assert runs(pool, first)
    assert not runs(pool, second)
    assert pool.state.tickets[second].reason.startswith("would exceed the quota of project vision: 2 GPUs")
    assert runs(pool, asks(pool, 2, project="nlp"))
    end(pool, first)
    assert runs(pool, second)


def test_the_owner_of_a_quota_reclaims_what_others_borrow_whatever_the_priority() -> None:
    pool = pool_of(4, clients=("a", "b"), notice_ms=5_000)
    pool.ask("a", r.SetQuota(Quota("a", 2_000)))
    pool.ask("a", r.SetQuota(Quota("b", 2_000)))
    own = asks(pool, 2, client="b", priority=9)
    borrowed = asks(pool, 2, client="b", priority=9)
    mine = asks(pool, 2, client="a")
    assert pool.state.tickets[borrowed].preempt_for == mine
    assert runs(pool, borrowed)
    pool.pass_time(6_000)
    assert runs(pool, mine)
    assert runs(pool, own)
    assert borrowed not in pool.state.tickets


def test_a_gang_within_its_quota_comes_before_those_that_would_borrow() -> None:
    pool = pool_of(4, clients=("a", "b"), preempt=False)
    pool.ask("a", r.SetQuota(Quota("a", 4_000)))
    pool.ask("a", r.SetQuota(Quota("b", 1_000)))
    asks(pool, 4, client="b")
    over, within = asks(pool, 2, client="b"), asks(pool, 2, client="a")
    assert order_of(pool) == [within, over]


def test_quotas_change_and_go_live() -> None:
    pool = pool_of(4)
    pool.ask("c", r.SetQuota(Quota("*", 1_000, borrow=False)))
    asks(pool, 1)
    waits = asks(pool, 2)
    assert not runs(pool, waits)
    pool.ask("c", r.SetQuota(Quota("*", 3_000, borrow=False)))
    assert runs(pool, waits)
    more = asks(pool, 1)
    assert not runs(pool, more)
    pool.ask("c", r.RemoveQuota("*"))
    assert runs(pool, more)


def test_a_priority_above_what_the_quota_allows_is_refused_unless_an_operator_asks() -> None:
    pool = pool_of(4)
    pool.ask("c", r.SetQuota(Quota("vision", priority_max=5)))
    pool.ask("c", r.SetQuota(Quota("*", priority_max=0)))
    assert runs(pool, asks(pool, 1, priority=5, project="vision"))
    for project, priority, most in (("vision", 6, 5), ("nlp", 1, 0)):
        refused = pool.allocate("c", gang(1, 1, 1, terms=Terms(priority=priority, project=project)))
        assert isinstance(refused, p.Failed)
        assert (refused.code, f"may ask for {most} at most" in refused.reason) == ("limit", True)
    spec = gang(1, 1, 1, terms=Terms(priority=6, project="vision"))
    signers: tuple[tuple[Kind, str], ...] = (("user", "limit"), ("operator", ""))
    for kind, code in signers:
        pool.seqs["c"] += 1
        asked = r.Envelope(r.AllocateGang(spec, 0), "c", pool.seqs["c"], signer=Signer(kind, "olga"))
        event = decide(pool.state, asked, pool.now_ms)[0]
        assert getattr(event, "code", "") == code


def record(pool: MemoryPool, event: e.Event) -> None:
    """Fold an event without what would follow."""
    fold(pool.state, e.Recorded(f"{pool.now_ms + 1}-0", event))


# --- backfill ----------------------------------------------------------------------------------------------------


def test_a_short_gang_goes_before_a_large_one_that_it_does_not_delay() -> None:
    pool = pool_of(4)
    asks(pool, 3, expected_ms=HOUR)
    large = asks(pool, 4)
    long, short = asks(pool, 1, expected_ms=2 * HOUR), asks(pool, 1, expected_ms=HOUR // 2)
    assert [runs(pool, t) for t in (large, long, short)] == [False, False, True]
    granted = [x.event for x in pool.log if isinstance(x.event, e.GangAllocated)][-1]
    assert granted.order == "priority/1+backfill/1"


def test_a_gang_of_unknown_duration_goes_before_others_only_where_it_is_in_nobodys_way() -> None:
    pool = pool_of(4, 2)
    asks(pool, 3, expected_ms=HOUR)
    large = asks(pool, 4)
    beside, in_the_way = asks(pool, 2), asks(pool, 1)
    assert [runs(pool, t) for t in (large, beside, in_the_way)] == [False, True, False]


def test_all_that_may_overtake_are_granted_by_one_plan_and_nothing_is_booked_before_that_is_recorded() -> None:
    pool = pool_of(4, 4)
    asks(pool, 3, expected_ms=HOUR)
    asks(pool, 3, expected_ms=HOUR)
    pool.ask("c", r.SetQueuePolicy(QueuePolicy(backfill=False)))
    large = asks(pool, 4, nodes=2)
    short = [asks(pool, 1, expected_ms=HOUR // 2) for _ in range(4)]
    record(pool, e.QueuePolicyChanged("", 0, QueuePolicy()))
    before = encode(pool.state)
    events = tick(pool.state, pool.now_ms)
    assert [getattr(event, "ticket_id", "") for event in events] == short[:2], "there are two places"
    assert encode(pool.state) == before
    assert all(node.free_gpus.bit_count() == 1 for node in pool.state.nodes.values())
    pool.pass_time(0)
    assert [runs(pool, t) for t in (large, *short)] == [False, True, True, False, False]


def test_without_backfill_nobody_overtakes() -> None:
    pool = pool_of(4, 2, backfill=False)
    asks(pool, 3, expected_ms=HOUR)
    asks(pool, 4)
    assert not runs(pool, asks(pool, 1, expected_ms=1000))


def test_an_overdue_ticket_may_end_at_any_time_and_is_not_counted_on() -> None:
    pool = pool_of(4)
    asks(pool, 3, expected_ms=1_000)
    large = asks(pool, 4)
    pool.pass_time(5_000)
    assert not runs(pool, asks(pool, 1))
    assert not runs(pool, large)


# --- preemption --------------------------------------------------------------------------------------------------


def test_a_gang_takes_the_place_of_preemptible_tickets_of_lower_priority_after_a_notice() -> None:
    pool = pool_of(2, notice_ms=5_000)
    victim = asks(pool, 2, preemptible=True)
    pool.launch("c", victim, (0,))
    pool.settle()
    urgent = asks(pool, 2, priority=1)
    (told,) = [n for n in pool.notices["c"] if isinstance(n, p.TicketNotice)]
    assert (told.notice.kind, told.notice.deadline_ms > pool.now_ms) == ("preempting", True)
    pool.settle()
    assert runs(pool, victim)
    pool.pass_time(5_100)
    assert not runs(pool, urgent)  # its actor has not ended yet (I4)
    pool.settle()
    assert runs(pool, urgent)
    assert kinds(pool, victim)[-5:] == [
        "actor.started",
        "ticket.preempting",
        "gang.releasing",
        "actor.exited",
        "gang.released",
    ]


@pytest.mark.parametrize("terms", [{"preemptible": False}, {"preemptible": True, "priority": 1}])
def test_equal_priorities_and_tickets_that_are_not_preemptible_stay(terms: dict[str, Any]) -> None:
    pool = pool_of(2)
    stays = asks(pool, 2, **terms)
    asks(pool, 2, priority=1)
    assert kinds(pool, stays) == ["gang.allocated"]


def test_nobody_is_preempted_if_that_would_not_help() -> None:
    pool = pool_of(4)
    asks(pool, 2)
    victim = asks(pool, 2, preemptible=True)
    asks(pool, 3, priority=1)
    assert kinds(pool, victim) == ["gang.allocated"]


def test_the_lowest_priorities_go_first_and_then_the_least_work() -> None:
    pool = pool_of(4)
    old = asks(pool, 1, preemptible=True)
    middle = asks(pool, 1, preemptible=True, priority=1)
    pool.pass_time(HOUR)
    young, large = asks(pool, 1, preemptible=True), asks(pool, 1, preemptible=True, priority=2)
    asks(pool, 1, priority=5)
    assert [t for t in (old, middle, young, large) if pool.state.tickets[t].preempt_ms] == [young]


def test_no_more_tickets_are_preempted_while_the_first_are_still_ending() -> None:
    pool = pool_of(2, notice_ms=1_000)
    one, two = asks(pool, 1, preemptible=True), asks(pool, 1, preemptible=True)
    pool.launch("c", one, (0,))
    pool.launch("c", two, (0,))
    pool.settle()
    asks(pool, 1, priority=1)
    pool.pass_time(60_000)
    preempted = [t for t in (one, two) if "ticket.preempting" in kinds(pool, t)]
    assert len(preempted) == 1


def test_a_ticket_is_spared_when_the_other_does_not_wait_any_more() -> None:
    pool = pool_of(2)
    victim = asks(pool, 2, preemptible=True)
    urgent = asks(pool, 2, priority=1)
    pool.ask("c", r.ReleaseGang(urgent))
    assert kinds(pool, victim)[-2:] == ["ticket.preempting", "ticket.spared"]
    pool.pass_time(HOUR)
    assert runs(pool, victim)


def test_without_preemption_nobody_is_preempted() -> None:
    pool = pool_of(2, preempt=False)
    victim = asks(pool, 2, preemptible=True)
    asks(pool, 2, priority=1)
    assert kinds(pool, victim) == ["gang.allocated"]


# --- reservations ------------------------------------------------------------------------------------------------


def reserve(pool: MemoryPool, nodes: int, *, gpus: int = 4, after_ms: int = 0, for_ms: int = HOUR, **more: Any) -> str:
    start = pool.now_ms + after_ms if after_ms else 0
    name = f"r-{pool.state.queueing.next_reservation}"
    answer = pool.ask("c", r.CreateReservation(nodes, gpus, for_ms, start, **more))
    assert isinstance(answer, p.Reserved), answer
    assert answer.reservation == pool.state.queueing.reservations[name]
    return name


def test_reserved_nodes_are_for_those_who_ask_for_the_reservation() -> None:
    pool = pool_of(4, 4)
    name = reserve(pool, 1)
    assert runs(pool, asks(pool, 4))
    assert not runs(pool, asks(pool, 1))
    mine = asks(pool, 2, reservation=name)
    assert runs(pool, mine)
    assert pool.state.tickets[mine].slots[0].node_id == pool.state.queueing.reservations[name].nodes[0]


def test_before_it_begins_only_gangs_that_end_in_time_get_places_there() -> None:
    pool = pool_of(4)
    name = reserve(pool, 1, after_ms=HOUR)
    assert not runs(pool, asks(pool, 1, wait=False))
    assert not runs(pool, asks(pool, 1, expected_ms=2 * HOUR, wait=False))
    short = asks(pool, 1, expected_ms=HOUR // 2)
    assert runs(pool, short)
    mine = asks(pool, 1, reservation=name)
    assert not runs(pool, mine)
    pool.pass_time(HOUR)
    assert runs(pool, mine)


def test_its_tickets_end_with_it() -> None:
    pool = pool_of(4)
    name = reserve(pool, 1, for_ms=HOUR)
    mine = asks(pool, 1, reservation=name)
    pool.pass_time(HOUR - 20_000)
    assert runs(pool, mine)
    pool.pass_time(20_001)
    assert mine not in pool.state.tickets
    assert pool.state.queueing.reservations == {}
    assert "ticket.expiring" in kinds(pool, mine)


def test_preemptible_tickets_make_room_for_it() -> None:
    pool = pool_of(4, notice_ms=10_000)
    victim = asks(pool, 4, preemptible=True)
    name = reserve(pool, 1, after_ms=HOUR)
    mine = asks(pool, 4, reservation=name)
    pool.pass_time(HOUR - 9_000)
    assert pool.state.tickets[victim].preempt_for == name
    pool.pass_time(10_100)  # the notice comes in full
    assert runs(pool, mine)


def test_a_reservation_that_was_to_begin_long_ago_is_a_slip() -> None:
    pool = pool_of(4)
    reserve(pool, 1, after_ms=-30_000)  # on its way for a while
    refused = pool.ask("c", r.CreateReservation(1, 4, HOUR, pool.now_ms - 2 * HOUR))
    assert isinstance(refused, p.Failed)
    assert "was to begin 120 minutes ago: give a time to come" in refused.reason


def test_a_reservation_that_cannot_be_is_refused_and_a_cancelled_one_is_open_to_all() -> None:
    pool = pool_of(4, 4)
    name = reserve(pool, 2)
    refused = pool.ask("c", r.CreateReservation(1, 4, HOUR))
    assert isinstance(refused, p.Failed)
    assert refused.code == "reservation_refused"
    later = asks(pool, 1)
    assert not runs(pool, later)
    pool.ask("c", r.CancelReservation(name))
    assert runs(pool, later)
    unknown = pool.ask("c", r.CancelReservation(name))
    assert isinstance(unknown, p.Failed)
    assert unknown.code == "unknown_reservation"


def test_a_reservation_of_a_project_is_for_its_gangs() -> None:
    pool = pool_of(4)
    name = reserve(pool, 1, project="vision")
    refused = pool.ask("c", r.AllocateGang(gang(1, 1, 1, terms=Terms(reservation=name)), None))
    assert isinstance(refused, p.Failed)
    assert runs(pool, asks(pool, 1, reservation=name, project="vision"))


def test_a_gang_whose_reservation_has_gone_is_refused_or_waits_out_its_time() -> None:
    pool = pool_of(4)
    assert isinstance(pool.ask("c", r.AllocateGang(gang(1, 1, 1, terms=Terms(reservation="r-9")), None)), p.Failed)


@pytest.mark.parametrize("gpus", [1, 0.5])
def test_a_ticket_on_an_unhealthy_gpu_is_looked_past_without_harm(gpus: float) -> None:
    """To look what would fit without it, its slots are given back for a moment; an unhealthy GPU is not free then."""
    pool = pool_of(2)
    spec = gang(1, 1, gpus, terms=Terms(preemptible=True))
    for _ in range(2 if gpus == 1 else 4):
        pool.allocate("c", spec, 0)
    pool.ask("c", r.MarkGpu("n1", 0, healthy=False))
    urgent = asks(pool, 1, priority=1)
    pool.check()
    held = [t for t in pool.state.preempting if pool.state.tickets[t].slots[0].gpu_ids == (1,)]
    assert held == list(pool.state.preempting)
    pool.pass_time(60_000)
    assert runs(pool, urgent)
    pool.check()
    pool.check_replay(len(pool.log) // 2)
