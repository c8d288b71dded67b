"""Bugs to plant: each breaks one promise of the real code, and the simulator must find it."""

from __future__ import annotations

import pytest

from spoke.agent import machine as agent_machine
from spoke.allocator import nodes, outbox, restarts, tickets
from spoke.allocator.effects.kinds import GrantLease, Tell
from spoke.client import machine as client_machine
from spoke.events import fold as fold_module
from spoke.events import state as state_module
from spoke.events import types as e
from tests.sim.server import Server

Patch = pytest.MonkeyPatch


def no_fencing(patch: Patch) -> None:
    """The commit does not look who leads."""
    patch.setattr(Server, "fencing_error", lambda self, holder, epoch: "")
    patch.setattr(Server, "end_of_log", lambda self, expected: expected)


def no_duplicate_check(patch: Patch) -> None:
    """A request that arrives twice is decided twice."""
    patch.setattr(state_module.ClientState, "has_decided", lambda self, seq: False)


def gpus_freed_before_the_exit(patch: Patch) -> None:
    """A released ticket's GPUs are free at once, whatever still runs there."""

    def free_nodes(ticket, candidates, dead=()):  # type: ignore[no-untyped-def]
        free = tuple(sorted(candidates))
        return [e.GangReleased(ticket.ticket_id, free, len(free) == len(ticket.held))] if free else []

    def released(state, event_id, event):  # type: ignore[no-untyped-def]
        state.tickets[event.ticket_id].alive.clear()
        real(state, event_id, event)

    real = fold_module._HANDLERS[e.GangReleased]
    patch.setitem(fold_module._HANDLERS, e.GangReleased, released)
    patch.setattr(tickets, "free_nodes", free_nodes)
    patch.setattr(nodes, "free_nodes", free_nodes)


def agent_does_not_fence(patch: Patch) -> None:
    """An agent without a lease goes on, and so does its keeper."""
    from tests.sim.node import SimNode

    real = agent_machine.AgentMachine._clear

    def keep(self, why, now_s):  # type: ignore[no-untyped-def]
        return [] if "could not be renewed" in why else real(self, why, now_s)

    patch.setattr(agent_machine.AgentMachine, "_clear", keep)
    patch.setattr(SimNode, "_extend", lambda self, until_s: setattr(self, "_fence_s", float("inf")))


def lost_tail_unnoticed(patch: Patch) -> None:
    """Nothing is held back when the server has changed."""
    real = fold_module._HANDLERS[e.ServerChanged]

    def changed(state, event_id, event):  # type: ignore[no-untyped-def]
        real(state, event_id, event)
        state.changed = False
        for node in state.nodes.values():
            node.confirmed = True
            state.index(node)

    patch.setitem(fold_module._HANDLERS, e.ServerChanged, changed)


def leases_not_renewed_after_a_loss(patch: Patch) -> None:
    """The leases are left as an older state of the server has them."""
    real = outbox._HANDLERS[e.ServerChanged]

    def effects(state, event, cause):  # type: ignore[no-untyped-def]
        return (one for one in real(state, event, cause) if not isinstance(one, GrantLease))

    patch.setitem(outbox._HANDLERS, e.ServerChanged, effects)


def answered_twice(patch: Patch) -> None:
    """A launch is answered twice."""
    real = outbox._HANDLERS[e.ActorStarted]

    def effects(state, event, cause):  # type: ignore[no-untyped-def]
        for one in real(state, event, cause):
            yield one
            if isinstance(one, Tell) and one.seq:
                yield one

    patch.setitem(outbox._HANDLERS, e.ActorStarted, effects)


def lost_grants_kept(patch: Patch) -> None:
    """A client does not compare what it holds with what the log has."""
    patch.setattr(client_machine.Machine, "_resync", lambda self, message, now: [])


def reports_not_repeated(patch: Patch) -> None:
    """An agent does not report again what the server may have lost."""

    def report_again(self, server):  # type: ignore[no-untyped-def]
        self._reconciling, self._server = True, server
        return [self._report_held()]

    patch.setattr(agent_machine.AgentMachine, "_report_again", report_again)


def gang_resumed_before_all_have_ended(patch: Patch) -> None:
    """A gang is started again when the first of its members has ended."""
    real = restarts.resumed

    def resumed(ticket, rank, *, gone=False):  # type: ignore[no-untyped-def]
        kept, ticket.halting = ticket.halting, {rank}
        try:
            return real(ticket, rank, gone=gone)
        finally:
            ticket.halting = kept

    def restarted(state, event_id, event):  # type: ignore[no-untyped-def]
        state.tickets[event.ticket_id].halting = set()

    patch.setattr(restarts, "resumed", resumed)
    patch.setitem(fold_module._HANDLERS, e.GangRestarted, restarted)


ALL = (
    no_fencing,
    no_duplicate_check,
    gpus_freed_before_the_exit,
    agent_does_not_fence,
    lost_tail_unnoticed,
    leases_not_renewed_after_a_loss,
    answered_twice,
    lost_grants_kept,
    reports_not_repeated,
    gang_resumed_before_all_have_ended,
)
