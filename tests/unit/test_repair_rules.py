"""A repaired member keeps to what its gang asked of the nodes: groups, domains, exclusive use, NICs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spoke.events.model import GangSpec, Nic, Resources
from spoke.events.rules import Group, Rules
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import MemoryPool, node_spec


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    for number, rack in enumerate("abaa"):
        nics = (Nic("m0:1"), Nic("m1:1"))
        pool.register(replace(node_spec(f"n{number}", 4), labels={"rack": rack}, nics=nics))
    pool.connect("c")
    return pool


def run(pool: MemoryPool, spec: GangSpec) -> str:
    answer = pool.allocate("c", spec)
    assert isinstance(answer, p.Granted)
    pool.launch("c", answer.ticket_id, tuple(slot.global_rank for slot in answer.slots))
    pool.settle()
    return answer.ticket_id


def repair(pool: MemoryPool, ticket: str, rank: int, *, elsewhere: bool = False) -> p.Message | None:
    for agent in pool.agents.values():
        for launch_id, order in list(agent.processes.items()):
            if (order.ticket_id, order.rank) == (ticket, rank):
                pool.end(agent, launch_id, code=1)
    answer = pool.ask("c", r.RepairGang(ticket, rank, elsewhere))
    pool.check()
    pool.check_replay(len(pool.log) // 2)
    return answer


def test_a_member_of_a_group_is_replaced_by_what_its_group_needs(pool: MemoryPool) -> None:
    groups = (Group("controller", 1, 1, Resources(cpus=60)), Group("worker", 1, 2, Resources(gpus=1)))
    ticket = run(pool, GangSpec(2, 1, groups=groups))
    answer = repair(pool, ticket, 2)
    assert isinstance(answer, p.Repaired)
    assert (answer.slot.group, answer.slot.rank_in_group, len(answer.slot.gpu_ids)) == ("worker", 1, 1)
    moved = repair(pool, ticket, 0, elsewhere=True)
    assert isinstance(moved, p.Repaired)
    assert (moved.slot.group, moved.slot.gpu_ids) == ("controller", ())
    assert pool.state.nodes[moved.slot.node_id].free_cpu_milli == 4_000


def test_a_gang_of_one_rack_stays_in_it(pool: MemoryPool) -> None:
    ticket = run(pool, GangSpec(2, 1, Resources(gpus=1), rules=Rules(same="rack")))
    answer = repair(pool, ticket, 1, elsewhere=True)
    assert isinstance(answer, p.Repaired)
    assert pool.state.nodes[answer.slot.node_id].spec.labels["rack"] == "a"
    assert isinstance(repair(pool, ticket, 1, elsewhere=True), p.Repaired)


def test_labels_hold_for_the_new_place_too(pool: MemoryPool) -> None:
    ticket = run(pool, GangSpec(1, 1, Resources(gpus=1), rules=Rules(where={"rack": "b"})))
    assert isinstance(repair(pool, ticket, 0, elsewhere=True), p.Failed)
    assert isinstance(repair(pool, ticket, 0), p.Repaired)


def test_an_exclusive_gang_moves_to_empty_nodes_and_frees_what_it_leaves(pool: MemoryPool) -> None:
    other = run(pool, GangSpec(1, 1, Resources(gpus=1), preferred_node="n0"))
    ticket = run(pool, GangSpec(1, 1, Resources(gpus=1), rules=Rules(exclusive=True)))
    (left,) = pool.state.tickets[ticket].held
    answer = repair(pool, ticket, 0, elsewhere=True)
    assert isinstance(answer, p.Repaired)
    (taken,) = pool.state.tickets[other].held
    assert answer.slot.node_id not in (left, taken)
    assert pool.state.nodes[answer.slot.node_id].exclusive == ticket
    assert pool.state.nodes[left].exclusive == ""


def test_the_new_place_has_nics_of_its_own(pool: MemoryPool) -> None:
    spec = GangSpec(1, 2, Resources(gpus=1, nics=1))
    ticket = run(pool, spec)
    answer = repair(pool, ticket, 1)
    assert isinstance(answer, p.Repaired)
    first, second = pool.state.tickets[ticket].slots
    assert first.nics != second.nics == answer.slot.nics
