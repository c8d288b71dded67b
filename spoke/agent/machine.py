"""The agent's protocol as a pure state machine: what it is told goes in, what it must do comes out.

No I/O and no clock: ``now_s`` is an argument, on a clock that never goes back. What is promised here:

- every StartActor order leads to exactly one terminal report (start failed, or exited), whatever comes between, and
  to one more for each time that its gang is restarted after that (what happens between is ``life.py``'s);
- I7: actors run only while the lease is sure. It is sure until the moment the last successful renewal was SENT, plus
  the lease, less a margin for the killing. Later the agent kills everything and joins again, as a new incarnation;
- an agent asks to be registered only when nothing of its earlier incarnations is alive;
- a port is held again before the end of its ticket's last actor is reported.

Phases: joining (asked to be registered) -> confirming (welcomed, first renewal under way) -> up -> clearing (killing
everything) -> waiting (a moment before it joins again) -> joining. Leaving, at the agent's end, is apart from these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from spoke.agent import instructions as i
from spoke.agent.life import Life, Step, main_of
from spoke.errors import NodeRemoved, SpokeError
from spoke.events.model import NodeSpec
from spoke.events.names import check_name
from spoke.protocol import orders as o
from spoke.protocol import requests as r

Phase = Literal["joining", "confirming", "up", "clearing", "waiting", "left"]

MARGIN_SHARE = 0.2
MARGIN_S_MIN = 0.1
REGISTER_AGAIN_S = 5.0
REJOIN_S_MIN, REJOIN_S_MAX = 0.2, 5.0
CLEAR_S_MAX = 1.0
"""A keeper that has not killed everything by then is itself killed."""
REMEMBERED_MAX = 4_096
REPORTS_KEPT = 1_024
"""Reports that are sent again when the server has changed: more than it can lose at its end."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change during an agent's life. ``token`` is unique to this process; times are in seconds."""

    spec: NodeSpec
    token: str
    lease_ms: int
    start_limit_s: float = 300.0
    leave_s_max: float = 15.0
    refused_s_max: float | None = None
    """For how long a refused registration is tried again; by default a bit more than the lease, since the node id may
    still be held by a machine that has just died."""


_Report = r.ReportStarted | r.ReportStartFailed | r.ReportExited | r.ReportRestarting | r.ReportHalted
_HELD_BACK = (o.StartActor, o.StopActor, o.HaltActors, o.ResumeActors)
"""Orders that wait until the pool and this agent agree on what runs."""


class AgentMachine:
    """The state of one agent. Feed it through its methods; do what they return, in order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.phase: Phase = "joining"
        self.incarnation = ""
        self.leaving = False
        self._count = 0
        self._lease_s = settings.lease_ms / 1000
        self._sure_until_s = 0.0
        self._renew_at_s: float | None = None
        self._renewing = False
        self._unanswered = False
        self._wake_at_s: float | None = None
        self._refused_since_s: float | None = None
        self._up_since_s = 0.0
        self._rejoin_s = REJOIN_S_MIN
        self._leave_until_s: float | None = None
        self._actors: dict[str, Life] = {}
        self._parked: dict[str, Life] = {}  # their ends were reported, and a restart of their gang may need them
        self._held: list[o.Delivery] = []
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._noticed: OrderedDict[str, None] = OrderedDict()
        self._lent: dict[str, int] = {}
        self._reports: OrderedDict[str, r.Request] = OrderedDict()
        self._seen_last = ""
        self._reconciling = False
        self._server = ""
        self._unknown: set[str] = set()
        self._end = i.Quit()
        self._health: dict[int, tuple[str, str]] | None = None  # by index: what is wrong; None: nobody looks

    @property
    def actors_alive(self) -> tuple[str, ...]:
        """The launch ids of the actors that are not confirmed dead."""
        return tuple(self._actors)

    @property
    def margin_s(self) -> float:
        """How long before the lease's end everything is killed."""
        return max(MARGIN_S_MIN, self._lease_s * MARGIN_SHARE)

    def wake_at_s(self) -> float | None:
        """When ``tick`` must be called next; None if only something that happens can change anything."""
        times = [self._renew_at_s, self._wake_at_s, self._leave_until_s]
        if self.phase == "up":
            times += [self._sure_until_s, *(life.wake_at_s() for life in self._ticking())]
        return min((at_s for at_s in times if at_s is not None), default=None)

    # --- joining -----------------------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[i.Instruction]:
        """Ask to be registered. Nothing of an earlier agent of this node may be alive."""
        return self._join(now_s)

    def _join(self, now_s: float) -> list[i.Instruction]:
        self._count += 1
        self.incarnation = f"{self._settings.token}-{self._count}"
        self.phase = "joining"
        self._wake_at_s = now_s + REGISTER_AGAIN_S
        self._seen.clear()
        self._closed.clear()
        self._noticed.clear()
        self._held.clear()
        self._reports.clear()
        self._parked.clear()
        self._unknown.clear()
        self._reconciling, self._seen_last = False, ""
        return [i.DropUnsent(), self._send(r.RegisterNode(self._settings.spec, self._settings.lease_ms))]

    def _send(self, request: r.Request) -> i.Send:
        return i.Send(
            r.Envelope(request, node_id=self._settings.spec.node_id, incarnation=self.incarnation),
        )

    def _report(self, report: _Report) -> i.Send:
        """Report of an actor, and remember it in case that the server loses it."""
        self._reports.pop(report.launch_id, None)
        self._reports[report.launch_id] = report
        while len(self._reports) > REPORTS_KEPT + len(self._actors):
            self._reports.popitem(last=False)
        return self._send(report)

    def order(self, delivery: o.Delivery, now_s: float) -> list[i.Instruction]:
        """An order stands in the node's stream."""
        if delivery.incarnation != self.incarnation or self.phase == "left":
            return []
        match delivery.order:
            case o.Welcome(lease_ms=lease_ms):
                if self.phase != "joining":
                    return []
                self.phase, self._lease_s, self._wake_at_s = "confirming", lease_ms / 1000, None
                self._unanswered = False
                return self._renew()
            case o.Reject() as reject:
                return self._rejected(reject, now_s)
        holds_back = self._reconciling and isinstance(delivery.order, _HELD_BACK)
        if holds_back or self.phase in ("joining", "confirming"):
            self._held.append(delivery)
            return []
        return self._obey(delivery, now_s) if self.phase == "up" else []

    def _rejected(self, reject: o.Reject, now_s: float) -> list[i.Instruction]:
        if self.phase in ("clearing", "waiting"):
            return []
        if reject.code == NodeRemoved.code:
            self.leaving, self._end = True, i.Quit(reject.code, f"the node was removed: {reject.reason}")
            return self._clear(f"an operator removed this node ({reject.reason})", now_s)
        if self.phase != "joining":
            return self._clear(f"the pool gave this node up ({reject.reason})", now_s)
        if self.leaving:
            return self._quit()
        patience_s = self._settings.refused_s_max
        if patience_s is None:
            patience_s = self._lease_s * 1.5 + 2.0
        first = self._refused_since_s is None
        since_s = self._refused_since_s = now_s if self._refused_since_s is None else self._refused_since_s
        if reject.code != "node_refused" or now_s - since_s >= patience_s:
            self.phase = "left"
            return [i.Quit(reject.code, f"the pool refused this node: {reject.reason}")]
        self.phase, self._wake_at_s = "waiting", now_s + min(1.0, patience_s / 4)
        if not first:
            return []
        return [i.Warn(f"refused: {reject.reason}; trying for {patience_s:g} s in case that agent has just died")]

    # --- the lease ---------------------------------------------------------------------------------------------------

    def _renew(self) -> list[i.Instruction]:
        self._renewing, self._renew_at_s = True, None
        return [i.Renew(self.incarnation, round(self._lease_s * 1000))]

    def renewed(self, incarnation: str, sent_at_s: float, held: bool | None, now_s: float) -> list[i.Instruction]:
        """A renewal sent at ``sent_at_s`` came back: the lease is ``held``, lost (False), or nobody knows (None)."""
        if incarnation != self.incarnation or self.phase not in ("confirming", "up"):
            return []
        self._renewing = False
        if held is None:
            self._renew_at_s = now_s + min(1.0, self._lease_s / 20)
            return []
        if not held:
            return self._clear("the node's lease was lost", now_s)
        self._renew_at_s = sent_at_s + self._lease_s / 3
        self._sure_until_s = max(self._sure_until_s, sent_at_s + self._lease_s - self.margin_s)
        if now_s >= self._sure_until_s:  # it took so long that it proves nothing; "up" will notice by itself
            return self._renew() if self.phase == "confirming" else []
        steps: list[i.Instruction] = [i.ExtendLease(self._sure_until_s)]
        if self.phase == "confirming":
            self.phase, self._up_since_s, self._refused_since_s = "up", now_s, None
            steps.append(i.Joined())
            if self._health is not None:
                steps.append(self._report_health([gpu.index for gpu in self._settings.spec.gpus]))
            held_back, self._held = self._held, []
            for delivery in held_back:
                steps += self.order(delivery, now_s)
        return steps

    def _clear(self, why: str, now_s: float) -> list[i.Instruction]:
        """Kill everything; what is reported of it later would be void, since the pool counts it as lost already."""
        if self.phase == "up" and now_s - self._up_since_s > self._lease_s:
            self._rejoin_s = REJOIN_S_MIN
        else:
            self._rejoin_s = min(REJOIN_S_MAX, self._rejoin_s * 2)
        self.phase, self._wake_at_s = "clearing", now_s + CLEAR_S_MAX
        self._renew_at_s, self._renewing = None, False
        self._held.clear()
        self._parked.clear()
        for launch_id in [key for key, life in self._actors.items() if not life.has_process]:
            del self._actors[launch_id]
        killed = f"; its {len(self._actors)} actors are killed" if self._actors else ""
        return [i.Warn(f"{why}{killed}"), i.DropUnsent(), i.KillAll(), *self._maybe_cleared(now_s)]

    def orders_lost(self, now_s: float) -> list[i.Instruction]:
        """Orders were trimmed before they were read: nobody can know what they were, so the node begins anew."""
        if self.phase not in ("confirming", "up"):
            return []
        return self._clear("this node was away for so long that orders to it were trimmed", now_s)

    def _maybe_cleared(self, now_s: float) -> list[i.Instruction]:
        if self._actors:
            return []
        steps: list[i.Instruction] = [i.HoldPort(port) for port in self._lent.values()]
        self._lent.clear()
        if self.leaving:
            return steps + self._quit()
        self.phase, self._wake_at_s, self._sure_until_s = "waiting", now_s + self._rejoin_s, 0.0
        return steps

    # --- orders ------------------------------------------------------------------------------------------------------

    def _obey(self, delivery: o.Delivery, now_s: float) -> list[i.Instruction]:
        match delivery.order:
            case o.StartActor() as start:
                return self._start_actor(start, delivery.blob, now_s)
            case o.ReportHoldings(server=server):
                return self._report_again(server)
            case o.StopUnknown() as unknown:
                return self._stop_unknown(unknown)
            case o.Resume():
                return self._resume(now_s)
            case o.StopActor() as stop:
                self._parked.pop(stop.launch_id, None)
                return self._stop(stop.launch_id, stop.grace_s)
            case o.HaltActors() as halt:
                return self._halt(halt)
            case o.ResumeActors() as resume:
                lives = [self._actors[key] for key in resume.launches if key in self._actors]
                return [
                    s for life in lives for s in self._of(life, life.resume(resume.generation, resume.delay_s, now_s))
                ]
            case o.NotifyActors(notice=notice):
                _remember(self._noticed, notice.ticket_id)
                return [i.Notify(self._listening(notice.ticket_id), notice)]
            case o.TakeBackPort(ticket_id=ticket_id):
                return self._hold_port_of(ticket_id)
            case o.CloseTicket() as close:
                _remember(self._closed, close.ticket_id)
                self._forget_parked(close.ticket_id)
                mine = [key for key, actor in self._actors.items() if actor.order.ticket_id == close.ticket_id]
                stops = [step for key in mine for step in self._stop(key, close.grace_s)]
                return stops if mine else self._hold_port_of(close.ticket_id)
        return []

    def _report_again(self, server: str) -> list[i.Instruction]:
        """The server may have lost reports that it had taken. Those that it kept are decided once."""
        self._reconciling, self._server = True, server
        steps: list[i.Instruction] = [self._send(report) for report in self._reports.values()]
        return [*steps, self._report_held()]

    def _report_held(self) -> i.Send:
        tickets = {actor.order.ticket_id for actor in self._actors.values()} | self._lent.keys()
        waiting = [one.order.launch_id for one in self._held if isinstance(one.order, o.StartActor)]
        return self._send(
            r.ReportHeld(self._server, (*self._actors, *waiting), tuple(sorted(tickets)), self._seen_last)
        )

    def _stop_unknown(self, order: o.StopUnknown) -> list[i.Instruction]:
        if not self._reconciling:
            return []
        unknown = set(order.launches)
        self._held = [
            one for one in self._held if not (isinstance(one.order, o.StartActor) and one.order.launch_id in unknown)
        ]
        self._unknown = unknown & self._actors.keys()
        some = bool(self._unknown)
        steps: list[i.Instruction] = []
        for launch_id in sorted(self._unknown):
            life = self._actors[launch_id]
            steps += self._of(life, life.kill())
        for ticket_id in order.tickets:
            _remember(self._closed, ticket_id)
            self._forget_parked(ticket_id)
            if not any(life.order.ticket_id == ticket_id for life in self._actors.values()):
                steps += self._hold_port_of(ticket_id)
        return steps if some else [*steps, self._report_held()]

    def _resume(self, now_s: float) -> list[i.Instruction]:
        if not self._reconciling:
            return []
        self._reconciling = False
        held_back, self._held = self._held, []
        return [step for delivery in held_back for step in self.order(delivery, now_s)]

    def _start_actor(self, order: o.StartActor, blob: bytes, now_s: float) -> list[i.Instruction]:
        if order.launch_id in self._seen:
            return []
        _remember(self._seen, order.launch_id)
        self._seen_last = order.launch_id
        refusal = self._refusal(order)
        if refusal:
            return [self._report(r.ReportStartFailed(order.ticket_id, order.rank, order.launch_id, refusal))]
        for launch_id, life in list(self._parked.items()):
            if (life.order.ticket_id, life.order.rank) == (order.ticket_id, order.rank):  # this one takes its place
                del self._parked[launch_id]
        life = self._actors[order.launch_id] = Life(order, blob, self._settings.start_limit_s)
        steps: list[i.Instruction] = []
        ports = self._settings.spec.ports
        if order.rank == 0 and ports.first <= order.master_port < ports.first + ports.count:
            self._lent[order.ticket_id] = order.master_port
            steps.append(i.LendPort(order.master_port))
        return [*steps, *self._of(life, life.begin(now_s))]

    def _refusal(self, order: o.StartActor) -> str:
        if self.leaving:
            return "the node's agent is stopping: allocate elsewhere"
        if order.ticket_id in self._closed:
            return "its ticket is being given back"
        if not self._settings.spec.allow_commands:
            if order.spec.argv:
                return "this node runs no commands: start the agent with --allow-commands, or launch a registered type"
            care = order.spec.supervision
            if care is not None and (care.exit_hook is not None or (care.health is not None and care.health.argv)):
                return "this node runs no commands, and so no exit hooks: start the agent with --allow-commands"
        try:  # both become parts of a path
            check_name("the ticket id", order.ticket_id)
            check_name("the actor id", order.actor_id)
        except SpokeError as error:
            return str(error)
        return ""

    def _stop(self, launch_id: str, grace_s: float) -> list[i.Instruction]:
        life = self._actors.get(launch_id)
        return [] if life is None else self._of(life, life.stop(grace_s))

    def _halt(self, halt: o.HaltActors) -> list[i.Instruction]:
        steps: list[i.Instruction] = []
        for rank, launch_id in halt.members:
            life = self._actors.get(launch_id) or self._parked.get(launch_id)
            if life is None:
                reason = "it cannot be started again: this agent does not know it any more"
                lost = r.ReportStartFailed(halt.ticket_id, rank, launch_id, reason, halt.generation, forgotten=True)
                steps.append(self._report(lost))
                continue
            told = life.halt(halt.generation, halt.grace_s)
            if self._parked.pop(launch_id, None) is not None:
                self._actors[launch_id] = life
            steps += self._of(life, told)
        return steps

    def _forget_parked(self, ticket_id: str) -> None:
        for launch_id in [key for key, life in self._parked.items() if life.order.ticket_id == ticket_id]:
            del self._parked[launch_id]

    # --- the health of GPUs ------------------------------------------------------------------------------------------

    def health(self, found: Mapping[int, tuple[str, str]]) -> list[i.Instruction]:
        """What is wrong with which GPU, kind and reason by index; the others are healthy."""
        before, self._health = self._health or {}, dict(found)
        changed = sorted(index for index in before.keys() | found.keys() if before.get(index) != found.get(index))
        warnings: list[i.Instruction] = [
            i.Warn(
                f"GPU {index} is unhealthy ({found[index][0]}): {found[index][1]}"
                if index in found
                else f"GPU {index} is healthy again"
            )
            for index in changed
        ]
        return [*warnings, self._report_health(changed)] if changed and self.phase == "up" else warnings

    def _report_health(self, indices: Iterable[int]) -> i.Send:
        uuids = {gpu.index: gpu.uuid for gpu in self._settings.spec.gpus}
        known = self._health or {}
        return self._send(
            r.ReportHealth(tuple(r.GpuReport(n, uuids[n], *known.get(n, ("", ""))) for n in indices if n in uuids))
        )

    # --- what becomes of actors --------------------------------------------------------------------------------------

    def started(self, launch_id: str, pid: int, address: str, now_s: float) -> list[i.Instruction]:
        """The actor says that it is up; a command's process was started."""
        life = self._actors.get(launch_id)
        if life is None or self.phase != "up":
            return []
        return self._of(life, life.started(pid, address, now_s))

    def _listening(self, ticket_id: str) -> tuple[str, ...]:
        """The ticket's actors that run and can hear a notice: commands cannot."""
        return tuple(
            launch_id
            for launch_id, life in self._actors.items()
            if life.order.ticket_id == ticket_id and life.is_up and not life.order.spec.argv
        )

    def failed(self, launch_id: str, reason: str, now_s: float, *, for_good: bool = False) -> list[i.Instruction]:
        """The actor says why it will not come up; its end follows. ``for_good``: another start would not help."""
        main, part = main_of(launch_id)
        if part:
            return [i.Warn(f"the {part} command of launch {main}: {reason}")]
        life = self._actors.get(launch_id)
        return [] if life is None else self._of(life, life.failed(reason, for_good=for_good))

    def explained(self, launch_id: str, reason: str) -> list[i.Instruction]:
        """The actor left word of why it ends, which is told with its end."""
        life = self._actors.get(launch_id)
        if life is not None:
            life.explained(reason)
        return []

    def probed(self, launch_id: str, number: tuple[int, int], trouble: str, now_s: float) -> list[i.Instruction]:
        """An actor was asked whether it is healthy: what is wrong, if anything is."""
        life = self._actors.get(launch_id)
        return [] if life is None or self.phase != "up" else self._of(life, life.probed(number, trouble, now_s))

    def ended(self, process_id: str, code: int, signal: int, tail: str, now_s: float) -> list[i.Instruction]:
        """Nothing of a process is alive. ``tail`` is the end of its log if it never said anything of its start."""
        launch_id, part = main_of(process_id)
        life = self._actors.get(launch_id)
        if life is None:
            return []
        if self.phase == "clearing":
            life.buried(part)
            if not life.has_process:
                del self._actors[launch_id]
            return self._maybe_cleared(now_s)
        return self._of(life, life.ended(part, code, signal, tail, now_s))

    def _of(self, life: Life, told: list[Step]) -> list[i.Instruction]:
        """What one launch leads to, in the order in which it must be done and said."""
        order = life.order
        steps: list[i.Instruction] = []
        if life.reported_end and self._actors.get(order.launch_id) is life:
            del self._actors[order.launch_id]
            if life.may_be_resumed and order.ticket_id not in self._closed and not self.leaving:
                self._parked[order.launch_id] = life
            if order.ticket_id in self._closed and not any(
                other.order.ticket_id == order.ticket_id for other in self._actors.values()
            ):
                steps += self._hold_port_of(order.ticket_id)
        for step in told:
            steps.append(self._report(step) if isinstance(step, _Report) else step)  # type: ignore[arg-type]
            if isinstance(step, r.ReportStarted) and order.ticket_id in self._noticed and not order.spec.argv:
                steps.append(i.Notify((order.launch_id,)))
        if life.reported_end and order.launch_id in self._unknown:
            self._unknown.discard(order.launch_id)
            if not self._unknown and self._reconciling:
                steps.append(self._report_held())
        return steps + self._maybe_leave()

    def _hold_port_of(self, ticket_id: str) -> list[i.Instruction]:
        port = self._lent.pop(ticket_id, None)
        return [i.HoldPort(port)] if port is not None else []

    def keeper_lost(self, now_s: float) -> list[i.Instruction]:
        """The keeper died, everything below it was killed, and a new one is there."""
        steps: list[i.Instruction] = [i.ExtendLease(self._sure_until_s)] if self.phase == "up" else []
        for launch_id, life in list(self._actors.items()):
            if self.phase != "clearing":
                steps += self._of(life, life.keeper_lost(now_s))
                continue
            del self._actors[launch_id]
        return steps + (self._maybe_cleared(now_s) if self.phase == "clearing" else [])

    def _ticking(self) -> list[Life]:
        """The launches that go on as time passes: nothing is started while pool and agent compare what runs."""
        return [life for life in self._actors.values() if not (self._reconciling and life.stage == "waiting")]

    # --- time and the end --------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[i.Instruction]:
        """Time has passed."""
        if self.phase == "up" and now_s >= self._sure_until_s:
            return self._clear("the node's lease could not be renewed in time", now_s)
        if self._leave_until_s is not None and now_s >= self._leave_until_s:
            return self.leave(now_s, at_once=True)
        steps: list[i.Instruction] = []
        if self._renew_at_s is not None and now_s >= self._renew_at_s and not self._renewing:
            steps += self._renew()
        if self.phase == "up":
            for life in self._ticking():
                steps += self._of(life, life.tick(now_s))
        if self._wake_at_s is not None and now_s >= self._wake_at_s:
            steps += self._overdue(now_s)
        return steps

    def _overdue(self, now_s: float) -> list[i.Instruction]:
        match self.phase:
            case "joining":  # the same incarnation: should the first request still stand, it is decided once
                self._wake_at_s = now_s + REGISTER_AGAIN_S
                again = self._send(r.RegisterNode(self._settings.spec, self._settings.lease_ms))
                steps: list[i.Instruction] = [i.DropUnsent(), again]
                if not self._unanswered:
                    steps.insert(
                        0, i.Warn("no allocator has answered yet (is one running in this pool?); waiting for it")
                    )
                self._unanswered = True
                return steps
            case "clearing":
                self._wake_at_s = now_s + CLEAR_S_MAX
                return [i.KillKeeper()]
            case "waiting":
                return self._join(now_s)
        self._wake_at_s = None
        return []

    def leave(self, now_s: float, *, at_once: bool = False) -> list[i.Instruction]:
        """End in order: stop every actor (``at_once``: without its grace), report it, leave the pool."""
        if self.phase == "left":
            return []
        if self.leaving and not at_once:
            return []
        self.leaving = True
        longest_s = 0.0 if at_once else self._settings.leave_s_max
        self._leave_until_s = None if at_once else now_s + longest_s
        if self.phase == "clearing":
            return []
        if self.phase == "waiting":
            return self._quit()
        stops: list[i.Instruction] = []
        self._parked.clear()
        for life in list(self._actors.values()):
            told = life.kill() if at_once else life.stop(min(life.order.grace_s, longest_s))
            stops += self._of(life, told)
        return stops + self._maybe_leave()

    def _maybe_leave(self) -> list[i.Instruction]:
        if not self.leaving or self._actors or self.phase == "left":
            return []
        return [self._send(r.LeaveNode("its agent was stopped")), *self._quit()]

    def _quit(self) -> list[i.Instruction]:
        self.phase = "left"
        self._leave_until_s = self._wake_at_s = self._renew_at_s = None
        return [self._end]


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    while len(names) > REMEMBERED_MAX:
        names.popitem(last=False)
