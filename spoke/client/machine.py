"""The client's protocol as a pure state machine: what was asked, what is answered, what is held.

No I/O, no clock, no lock: whoever owns it (``session.py``) numbers requests with ``ask``, feeds ``receive`` with what
stands in the reply stream, and carries out the outputs. Time comes in as an argument, in seconds that only grow.

A request leaves ``outstanding`` when its answer has come, or when it certainly was never written. One that nobody
waits for any more (cancelled, out of time, its sending unclear) stays as *abandoned*: should it be granted after
all, the machine gives the ticket back. What the machine asks on its own account (such a release, a cancel) is
*internal*: it is never given up as long as the session lasts.

The allocator remembers the numbers of the last thousand or so requests that it decided, so requests must be sent in
the order of their numbers; ``resend`` keeps to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from spoke.client import instructions as i
from spoke.client.instructions import Instruction
from spoke.client.tracking import Ticket
from spoke.errors import ClientClosed, LeaseLost, LimitExceeded, SpokeError, from_code
from spoke.events.codec import DecodeError
from spoke.events.model import GangSpec
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.notice import Notice

OUTSTANDING_MAX = 10_000
"""Requests that may wait for their answer at once, per client."""
ALLOCATE_GRACE_S = 30.0
"""How much longer than its own timeout an allocation is waited for, before the client gives it up by itself."""


_GIVING_BACK = (r.ReleaseGang, r.StopActor, r.CloseClient)


# --- state -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outstanding:
    """A request without an answer.

    ``give_up_at`` is when the client stops to wait for an allocation by itself. ``taken``: sending it was begun.
    ``unclear``: an attempt to send it failed in such a way that it may stand in the stream all the same.
    """

    request: r.Request
    blobs: bytes
    asked_at: float
    internal: bool = False
    give_up_at: float | None = None
    queued: p.Queued | None = None
    abandoned: bool = False
    taken: bool = False
    unclear: bool = False


@dataclass(slots=True)
class Machine:
    """One client's session."""

    outstanding_max: int = OUTSTANDING_MAX
    connected: bool = False
    over: SpokeError | None = None
    """Why the session is over, once it is."""
    outstanding: dict[int, Outstanding] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    asked_at: float = float("-inf")
    """When the latest request was asked."""
    _next_seq: int = 1
    _next_wait: int = 1
    _waits: dict[int, Ticket] = field(default_factory=dict)
    _releasing: dict[str, int] = field(default_factory=dict)

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: r.Request, now: float, blobs: bytes = b"") -> int:
        """Number a request; the caller sends it. Raises what ended the session, or LimitExceeded.

        What gives something back is never refused for the limit's sake.
        """
        if self.over is not None:
            raise self.over
        if len(self.outstanding) >= self.outstanding_max and not isinstance(request, _GIVING_BACK):
            raise LimitExceeded(
                f"{len(self.outstanding)} requests of this client have no answer yet, which is the limit: "
                f"wait for some of them before you send more"
            )
        return self._number(request, now, blobs)

    def _number(self, request: r.Request, now: float, blobs: bytes = b"", internal: bool = False) -> int:
        seq = self._next_seq
        self._next_seq = seq + 1
        self.asked_at = now
        one = Outstanding(request, blobs, now, internal)
        if type(request) is r.AllocateGang:
            if request.timeout_ms is not None:
                one.give_up_at = now + request.timeout_ms / 1000 + ALLOCATE_GRACE_S
        elif type(request) is r.ReleaseGang:
            self._releasing.setdefault(request.ticket_id, seq)
        self.outstanding[seq] = one
        return seq

    def release_in_progress(self, ticket_id: str) -> int | None:
        """The request that is giving this ticket back, if one has no answer yet."""
        return self._releasing.get(ticket_id)

    def needs_drop(self, ticket: Ticket) -> bool:
        """Whether the ticket must be given back if the user lets go of it. Takes no lock: finalizers call it."""
        return not ticket.released and self.over is None and ticket.ticket_id not in self._releasing

    def drop(self, ticket: Ticket, now: float) -> list[Instruction]:
        """The user has let go of a gang (``ticket.dropped``): give its ticket back, unless that is under way."""
        ticket_id = ticket.ticket_id
        if ticket_id not in self.tickets or not self.needs_drop(ticket):
            return []
        return [self._release(ticket_id, "its client dropped the last reference to the gang", now)]

    def _release(self, ticket_id: str, reason: str, now: float) -> i.Transmit:
        return self._ask_internally(r.ReleaseGang(ticket_id, reason), now)

    def _ask_internally(self, request: r.Request, now: float) -> i.Transmit:
        return i.Transmit(self._number(request, now, internal=True), request)

    # --- hearing -------------------------------------------------------------------------------------------------

    def receive(self, seq: int, message: p.Message, now: float) -> list[Instruction]:
        """Take in one entry of the reply stream. An answer that came before is ignored."""
        if seq == 0:
            return self._notice(message, now)
        one = self.outstanding.pop(seq, None)
        if self.over is not None:
            return []
        if one is None:
            return self._answered_again(message, now)
        request = one.request
        if type(message) is p.Failed:
            return self._failed(seq, one, message)
        if type(request) is r.AllocateGang:
            if type(message) is p.Granted:
                return self._granted(seq, one, request.spec, message, now)
        elif type(request) is r.ReleaseGang:
            outputs = self._gone(request.ticket_id)
            self._forget_release(request.ticket_id, seq)
            return [*outputs, i.Resolve(seq, message)]
        elif type(request) is r.ConnectClient:
            self.connected = True
            return [i.Connected(), i.Resolve(seq, message)]
        elif type(message) is p.Granted:
            return self._attached(seq, message)
        elif type(message) is p.Launched:
            return self._launched(seq, message)
        elif type(message) is p.Repaired:
            return [i.Resolve(seq, message, self._repaired(message))]
        return [i.Resolve(seq, message)]

    def _answered_again(self, message: p.Message, now: float) -> list[Instruction]:
        """A server that lost its last writes lets requests be decided again: what nobody waits for is given back."""
        if isinstance(message, p.Granted) and message.spec is None:
            if message.ticket_id in self.tickets or message.ticket_id in self._releasing:
                return []
            return [self._release(message.ticket_id, "granted again, after the server had lost the first grant", now)]
        if isinstance(message, p.Launched):
            ticket = self.tickets.get(message.ticket_id)
            known = {actor.launch_id for actor in ticket.actors.values()} if ticket is not None else set()
            again = [actor for actor in message.actors if actor.launch_id not in known] if ticket is not None else []
            return [self._ask_internally(r.StopActor(message.ticket_id, actor.rank), now) for actor in again]
        return []

    def _resync(self, message: p.Resync, now: float) -> list[Instruction]:
        """The server has changed: compare what is held with what the log has, and ask again what has no answer."""
        outputs: list[Instruction] = []
        lost_tickets, lost_launches = list[str](), list[str]()
        log = {holding.ticket_id: holding for holding in message.holdings}
        for ticket_id, ticket in list(self.tickets.items()):
            holding = log.get(ticket_id)
            if holding is None:
                ticket.releasing = ticket.releasing or "the server lost its last writes, and this ticket with them"
                outputs += self._gone(ticket_id)
                if ticket.owned:
                    lost_tickets.append(ticket_id)
                continue
            for rank, actor in list(ticket.actors.items()):
                if rank not in ticket.exits and actor.launch_id not in holding.launches:
                    reason = "the server lost its last writes, and this launch with them"
                    lost_launches.append(actor.launch_id)
                    lost = replace(actor, phase="lost", reason=reason)
                    outputs += self._over(ticket, ticket.ended(lost, False))
        for ticket_id, ticket in self.tickets.items():
            if ticket.was_repaired and ticket_id not in self._releasing:
                self._ask_internally(r.AttachGang(ticket_id), now)  # the log may have lost it: see the places it has
        for ticket_id, holding in log.items():
            let_go = holding.seq and holding.seq not in self.outstanding and not holding.releasing
            if let_go and ticket_id not in self.tickets and ticket_id not in self._releasing:
                self._release(ticket_id, "its client had released it before the server lost that", now)
        if lost_tickets or lost_launches:
            self._ask_internally(r.ReportLost(tuple(lost_tickets), tuple(lost_launches)), now)
        # with these releases, each once and in the order of the numbers
        waiting = [(seq, one) for seq, one in self.outstanding.items() if not one.abandoned]
        return outputs + [i.Transmit(seq, one.request, one.blobs) for seq, one in waiting]

    def _granted(self, seq: int, one: Outstanding, spec: GangSpec, message: p.Granted, now: float) -> list[Instruction]:
        ticket = Ticket(message.ticket_id, spec, message.slots, message.master_addr, message.master_port)
        self.tickets[message.ticket_id] = ticket
        if one.abandoned:
            return [self._release(message.ticket_id, "granted after its client had given the request up", now)]
        return [i.Resolve(seq, message, ticket)]

    def _attached(self, seq: int, message: p.Granted) -> list[Instruction]:
        ticket = self.tickets.get(message.ticket_id)
        if ticket is None:
            if message.spec is None:
                text = f"the allocator did not say what ticket {message.ticket_id} is: is it of the same release?"
                return [i.Fail(seq, DecodeError(text))]
            ticket = Ticket(
                message.ticket_id, message.spec, message.slots, message.master_addr, message.master_port, owned=False
            )
            self.tickets[message.ticket_id] = ticket
        elif ticket.slots != message.slots:
            ticket.slots, ticket.master_addr = message.slots, message.master_addr
            ticket.master_port = message.master_port
        done = ticket.saw(message.actors)
        return [*self._over(ticket, done), i.Resolve(seq, message, ticket)]

    def _launched(self, seq: int, message: p.Launched) -> list[Instruction]:
        ticket = self.tickets.get(message.ticket_id)
        if ticket is None:  # released while the launch was answered
            return [i.Resolve(seq, message)]
        return [*self._over(ticket, ticket.saw(message.actors)), i.Resolve(seq, message, ticket)]

    def _repaired(self, message: p.Repaired) -> Ticket | None:
        ticket = self.tickets.get(message.ticket_id)
        if ticket is not None:
            ticket.repaired(message.slot, message.master_addr, message.master_port)
        return ticket

    def _failed(self, seq: int, one: Outstanding, message: p.Failed) -> list[Instruction]:
        error = from_code(message.code, message.reason)
        request = one.request
        if isinstance(error, LeaseLost) or type(request) is r.ConnectClient:
            return [*self.end(error), i.Fail(seq, error)]
        if type(request) is r.ReleaseGang:
            self._forget_release(request.ticket_id, seq)
        return [i.Fail(seq, error)]

    def _restarting(self, ticket: Ticket, message: p.ActorsRestarting) -> list[Instruction]:
        ticket.restarting(message.actors)
        failed = next((actor for actor in message.actors if actor.rank == message.rank), message.actors[0])
        how = f"was ended by signal {failed.signal}" if failed.signal else f"exited with code {failed.code}"
        if failed.reason:
            how = f"failed: {failed.reason}" if failed.phase == "launching" else f"{how}: {failed.reason}"
        who = f"all {len(message.actors)} members are" if len(message.actors) > 1 else "it is"
        text = f"rank {failed.rank} ({failed.actor_id}) {how}; {who} started again (restart {failed.restarts})"
        ranks = tuple(actor.rank for actor in message.actors)
        notice = Notice(ticket.ticket_id, "restarting", text, failed.node_id, ranks)
        ticket.noticed(notice)
        return [i.Noticed(ticket, notice)]

    def _notice(self, message: p.Message, now: float) -> list[Instruction]:
        if isinstance(message, p.Queued):
            one = self.outstanding.get(message.of_seq)
            if one is None:
                return []
            one.queued = message
            return [self._cancel(message.of_seq, now)] if one.abandoned and self.over is None else []
        if isinstance(message, p.ActorEnded):
            ticket = self.tickets.get(message.ticket_id)
            if ticket is None:
                return []
            return [
                *self._over(ticket, ticket.ended(message.actor, message.expected)),
                i.ActorChanged(ticket, message.actor.rank),
            ]
        if isinstance(message, p.ActorsRestarting):
            ticket = self.tickets.get(message.ticket_id)
            return self._restarting(ticket, message) if ticket is not None else []
        if isinstance(message, p.ActorRestarted):
            ticket = self.tickets.get(message.ticket_id)
            if ticket is None:
                return []
            ticket.restarted(message.actor)
            return [i.ActorChanged(ticket, message.actor.rank)]
        if isinstance(message, p.TicketReleasing):
            ticket = self.tickets.get(message.ticket_id)
            if ticket is not None:
                ticket.releasing = message.reason
            return []
        if isinstance(message, p.Repaired):
            self._repaired(message)
            return []
        if isinstance(message, p.TicketNotice):
            ticket = self.tickets.get(message.notice.ticket_id)
            if ticket is None:
                return []
            ticket.noticed(message.notice)
            return [i.Noticed(ticket, message.notice)]
        if isinstance(message, p.TicketReleased):
            return self._gone(message.ticket_id)
        if isinstance(message, p.Resync):
            return self._resync(message, now) if self.over is None else []
        if isinstance(message, p.SessionLost):
            return self.end(LeaseLost(f"{message.reason}: this client's tickets were released; open a new client"))
        return []

    def _gone(self, ticket_id: str) -> list[Instruction]:
        ticket = self.tickets.pop(ticket_id, None)
        if ticket is None:
            return []
        return [*self._over(ticket, ticket.end()), i.TicketGone(ticket)]

    def _forget_release(self, ticket_id: str, seq: int) -> None:
        if self._releasing.get(ticket_id) == seq:
            del self._releasing[ticket_id]

    # --- giving up -----------------------------------------------------------------------------------------------

    def withdraw(self, seq: int, now: float) -> list[Instruction]:
        """Nobody waits for this request any more: take back what it asks for."""
        one = self.outstanding.get(seq)
        if one is None or one.abandoned or self.over is not None:
            return []
        request = one.request
        if type(request) is r.AllocateGang:
            one.abandoned = True
            return [self._cancel(seq, now)]
        if type(request) is r.LaunchActors:
            one.abandoned = True
            stops = [r.StopActor(request.ticket_id, member.rank) for member in request.members]
            return [self._ask_internally(stop, now) for stop in stops]
        return []

    def _cancel(self, seq: int, now: float) -> i.Transmit:
        return self._ask_internally(r.CancelGang(seq), now)

    def take(self, seqs: Iterable[int]) -> list[i.Transmit]:
        """What to send of these requests: those that somebody still waits for."""
        found = []
        for seq in seqs:
            one = self.outstanding.get(seq)
            if one is not None and not one.abandoned:
                one.taken = True
                found.append(i.Transmit(seq, one.request, one.blobs))
        return found

    def sending_unclear(self, seqs: Iterable[int]) -> None:
        """The connection broke while these were sent: they may stand in the stream or not."""
        for seq in seqs:
            one = self.outstanding.get(seq)
            if one is not None:
                one.unclear = True

    def send_refused(self, seq: int, error: SpokeError, now: float) -> list[Instruction]:
        """The server refused to take the request; an internal one stays, to be sent again later."""
        one = self.outstanding.get(seq)
        if one is None or one.internal:
            return []
        return [i.Fail(seq, error), *self._abandon(seq, one, now, written=one.unclear)]

    def give_up(
        self, error: SpokeError, now: float, *, asked_before: float, quick_only: bool = False
    ) -> list[Instruction]:
        """Fail what was asked before a moment and has not been taken up, because nobody seems to answer.

        ``quick_only`` spares launches and releases, whose answer takes as long as processes do.
        """
        failed = [
            (seq, one)
            for seq, one in self.outstanding.items()
            if one.asked_at <= asked_before and not _is_patient(one) and not (quick_only and _is_slow(one.request))
        ]
        outputs: list[Instruction] = [i.Fail(seq, error) for seq, _ in failed]
        for seq, one in failed:
            outputs += self._abandon(seq, one, now, written=one.taken)
        return outputs

    def _abandon(self, seq: int, one: Outstanding, now: float, *, written: bool) -> list[Instruction]:
        one.abandoned = True
        if not written:
            del self.outstanding[seq]
        if not isinstance(one.request, r.ReleaseGang):
            return []
        self._forget_release(one.request.ticket_id, seq)
        ticket = self.tickets.get(one.request.ticket_id)
        return self.drop(ticket, now) if ticket is not None and ticket.dropped else []

    def overdue(self, now: float) -> list[int]:
        """Allocations whose own time, and some more, has passed without the allocator's word."""
        return [
            seq
            for seq, one in self.outstanding.items()
            if one.give_up_at is not None and one.give_up_at <= now and not one.abandoned
        ]

    def oldest_unanswered(self, *, quick_only: bool = False) -> float | None:
        """When the oldest request was asked that the allocator has not taken up; None if there is none."""
        for one in self.outstanding.values():
            if not _is_patient(one) and not (quick_only and _is_slow(one.request)):
                return one.asked_at
        return None

    def resend(self) -> list[int]:
        """What to send again after the connection was lost: the server may have lost it, and twice does no harm."""
        return [seq for seq, one in self.outstanding.items() if not one.abandoned]

    def missed(self, now: float) -> list[Instruction]:
        """Replies were trimmed before they were read: nobody can know what they said, so the session is given up."""
        if self.over is not None:
            return []
        outputs = self.end(
            LeaseLost(
                "this client did not read for so long that replies to it were trimmed, and gives back what it had: "
                "open a new client"
            )
        )
        return [*outputs, self._ask_internally(r.CloseClient(), now)]

    def end(self, error: SpokeError) -> list[Instruction]:
        """The session is over (lost, refused or closed): fail all that waits."""
        if self.over is not None:
            return []
        self.over = error
        outputs: list[Instruction] = [i.Lost(error)]
        outputs += [i.Fail(seq, error) for seq, one in self.outstanding.items() if not one.abandoned]
        outputs += [i.WaitFailed(wait_id, error) for wait_id in self._waits]
        for ticket in self.tickets.values():
            if not isinstance(error, ClientClosed):
                ticket.releasing = ticket.releasing or str(error)
            outputs.append(i.TicketGone(ticket))
        self.outstanding.clear()
        self._waits.clear()
        self.tickets.clear()
        self._releasing.clear()
        return outputs

    # --- waiting for exits ---------------------------------------------------------------------------------------

    def watch(self, ticket: Ticket, ranks: Iterable[int]) -> tuple[int, list[Instruction]]:
        """Wait until the actors of these ranks have ended; the wait's id, and what is known already."""
        wait_id = self._next_wait
        self._next_wait += 1
        if ticket.watch(wait_id, ranks):
            return wait_id, [i.WaitOver(wait_id, ticket)]
        if self.over is not None:
            ticket.unwatch(wait_id)
            return wait_id, [i.WaitFailed(wait_id, self.over)]
        self._waits[wait_id] = ticket
        return wait_id, []

    def unwatch(self, wait_id: int) -> None:
        """Nobody waits for these exits any more."""
        ticket = self._waits.pop(wait_id, None)
        if ticket is not None:
            ticket.unwatch(wait_id)

    def _over(self, ticket: Ticket, wait_ids: list[int]) -> list[Instruction]:
        for wait_id in wait_ids:
            self._waits.pop(wait_id, None)
        return [i.WaitOver(wait_id, ticket) for wait_id in wait_ids]


def _is_slow(request: r.Request) -> bool:
    return isinstance(request, (r.LaunchActors, r.ReleaseGang))


def _is_patient(one: Outstanding) -> bool:
    """Whether it is not given up because nobody answers: it was taken up, nobody waits, or it can wait.

    The request that opens the session stays: an allocator that comes later finds it.
    """
    return one.abandoned or one.internal or one.queued is not None or type(one.request) is r.ConnectClient
