"""What orders the queue: policy, quotas, reservations."""

from __future__ import annotations

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.folding.handlers import Handlers
from spoke.events.ids import ms_of
from spoke.events.state import PoolState

handlers = Handlers()


@handlers.of(e.QueuePolicyChanged)
def _queue_policy_changed(state: PoolState, event_id: str, event: e.QueuePolicyChanged) -> None:
    state.queueing.settle(ms_of(event_id))
    state.queueing.policy = event.policy
    for ticket in state.tickets.values():
        state.watch(ticket)


@handlers.of(e.QuotaChanged)
def _quota_changed(state: PoolState, event_id: str, event: e.QuotaChanged) -> None:
    state.queueing.quotas[event.quota.project] = event.quota
    state.waiting.recall()


@handlers.of(e.QuotaRemoved)
def _quota_removed(state: PoolState, event_id: str, event: e.QuotaRemoved) -> None:
    if state.queueing.quotas.pop(event.project, None) is None:
        raise InvalidTransition(f"event {event_id} removes the quota of {event.project}, which has none")
    state.waiting.recall()


@handlers.of(e.ReservationCreated)
def _reservation_created(state: PoolState, event_id: str, event: e.ReservationCreated) -> None:
    name = event.reservation.reservation_id
    if name in state.queueing.reservations:
        raise InvalidTransition(f"event {event_id} creates the reservation {name} again")
    state.queueing.reservations[name] = event.reservation
    state.queueing.next_reservation += 1
    state.waiting.recall()


@handlers.of(e.ReservationCancelled, e.ReservationEnded)
def _reservation_over(state: PoolState, event_id: str, event: e.ReservationCancelled | e.ReservationEnded) -> None:
    if state.queueing.reservations.pop(event.reservation_id, None) is None:
        raise InvalidTransition(f"event {event_id} ends the reservation {event.reservation_id}, which is not there")
    state.waiting.recall()
