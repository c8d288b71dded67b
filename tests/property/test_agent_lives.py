"""Random lives of an agent: orders, deaths, lost leases and passing time in any order, against what it promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spoke.agent import instructions as i
from spoke.agent.life import main_of
from spoke.events.model import ActorSpec
from spoke.events.supervision import ExitHook, HealthCheck, Restart, Supervision
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from tests.unit.test_agent_machine import LEASE_S, a_machine, a_start

CARE = st.builds(
    Supervision,
    restart=st.none() | st.builds(Restart, st.just("on_failure"), st.integers(0, 3), st.just(0.5), st.just(2.0)),
    health=st.none() | st.just(HealthCheck(0.5, 0.5, 2, ("check",))),
    exit_hook=st.none() | st.just(ExitHook(("clean",), 1.0)),
)
TERMINAL = (r.ReportStartFailed, r.ReportExited)


class AgentLife(RuleBasedStateMachine):
    """Plays the pool, the keeper and the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.machine = a_machine()
        self.now_s = 0.0
        self.proven_until_s = 0.0  # the lease, as the server would have it at the least
        self.launches = 0
        self.ordered: dict[str, str] = {}  # launch id to incarnation
        self.alive: set[str] = set()
        self.ended: dict[str, int] = {}  # launch id to number of terminal reports
        self.lent: set[int] = set()
        self.renewing: tuple[str, float] | None = None
        self.done = False
        self.do(self.machine.start(0.0))

    def do(self, steps: list[i.Instruction]) -> None:
        for step in steps:
            match step:
                case i.Spawn(order, _):
                    self.spawned(order.launch_id)
                case i.SpawnHelper(order, _, part):
                    assert (order.launch_id in self.alive) == (part == "health")
                    self.spawned(f"{order.launch_id}+{part}")
                case i.Renew(incarnation, _):
                    self.renewing = (incarnation, self.now_s)
                case i.LendPort(port):
                    self.lent.add(port)
                case i.HoldPort(port):
                    self.lent.discard(port)
                case i.KillKeeper():
                    self.kill_keeper()
                case i.Quit():
                    assert not self.alive
                    self.done = True
                case i.Send(envelope):
                    self.sent(envelope)

    def spawned(self, process_id: str) -> None:
        assert self.machine.phase == "up"
        assert self.now_s < self.proven_until_s
        assert process_id not in self.alive
        self.alive.add(process_id)

    def sent(self, envelope: r.Envelope) -> None:
        request = envelope.request
        assert envelope.incarnation == self.machine.incarnation
        if isinstance(request, r.RegisterNode):
            assert not self.alive
            assert not self.lent
        if isinstance(request, (*TERMINAL, r.ReportRestarting, r.ReportHalted)):
            assert not {process for process in self.alive if main_of(process)[0] == request.launch_id}
        if isinstance(request, TERMINAL):
            assert self.ordered[request.launch_id] == envelope.incarnation
            self.ended[request.launch_id] = self.ended.get(request.launch_id, 0) + 1
        if isinstance(request, r.ReportStarted):
            assert request.launch_id in self.alive
            assert request.launch_id not in self.ended

    def deliver(self, order: o.Order) -> None:
        self.do(self.machine.order(o.Delivery(self.machine.incarnation, order), self.now_s))

    def tick(self) -> None:
        self.do(self.machine.tick(self.now_s))

    # --- rules ---

    running = precondition(lambda self: not self.done)

    @running
    @rule(ticket=st.sampled_from("abc"), rank=st.integers(0, 2), is_command=st.booleans(), care=CARE)
    def start_actor(self, ticket: str, rank: int, is_command: bool, care: Supervision) -> None:
        self.launches += 1
        launch_id = f"{self.launches}-0"
        if care.health is not None and not is_command:
            care = replace(care, health=replace(care.health, argv=()))
        what: dict[str, Any] = {"argv": ("x",)} if is_command else {"type_name": "T"}
        spec = ActorSpec(**what, supervision=care)
        order = a_start(launch_id, ticket_id=ticket, rank=rank, spec=spec, master_port=20_000 + "abc".index(ticket))
        if self.machine.phase in ("joining", "confirming", "up"):
            self.ordered[launch_id] = self.machine.incarnation
        self.deliver(order)
        self.deliver(order)

    @running
    @rule(data=st.data(), grace_s=st.sampled_from([0.0, 5.0]))
    def stop_actor(self, data: st.DataObject, grace_s: float) -> None:
        if self.ordered:
            launch_id = data.draw(st.sampled_from(sorted(self.ordered)))
            self.deliver(o.StopActor("a", 0, launch_id, grace_s))

    @running
    @rule(ticket=st.sampled_from("abc"))
    def close_ticket(self, ticket: str) -> None:
        self.deliver(o.CloseTicket(ticket, 1.0))

    @running
    @rule()
    def welcome(self) -> None:
        self.deliver(o.Welcome(int(LEASE_S * 1000)))

    @running
    @rule(code=st.sampled_from(["node_refused", "node_lost"]))
    def reject(self, code: str) -> None:
        if self.machine.phase != "joining" or code == "node_refused":
            self.deliver(o.Reject(code, "because"))

    @running
    @rule(held=st.sampled_from([True, True, True, None, False]))
    def answer_renewal(self, held: bool | None) -> None:
        if self.renewing is None:
            return
        (incarnation, sent_at_s), self.renewing = self.renewing, None
        if held and incarnation == self.machine.incarnation:
            self.proven_until_s = max(self.proven_until_s, sent_at_s + LEASE_S)
        self.do(self.machine.renewed(incarnation, sent_at_s, held, self.now_s))

    @running
    @rule(data=st.data(), what=st.sampled_from(["started", "failed", "ended"]))
    def hear_from_keeper(self, data: st.DataObject, what: str) -> None:
        if not self.alive:
            return
        launch_id = data.draw(st.sampled_from(sorted(self.alive)))
        if "+" in launch_id:
            what = "ended"
        code = data.draw(st.sampled_from([0, 1]))
        if what == "started":
            self.do(self.machine.started(launch_id, 7, "", self.now_s))
        elif what == "failed":
            self.do(self.machine.failed(launch_id, "so it is", self.now_s))
        else:
            self.alive.discard(launch_id)
            self.do(self.machine.ended(launch_id, code, 0, "", self.now_s))

    @running
    @rule()
    def kill_keeper(self) -> None:
        self.alive.clear()
        self.do(self.machine.keeper_lost(self.now_s))

    @running
    @rule(seconds=st.floats(0.01, 4.0))
    def wait(self, seconds: float) -> None:
        """The clock stops at every time at which the machine asked to be woken, as the service does."""
        until_s = self.now_s + seconds
        for _ in range(200):
            wake_s = self.machine.wake_at_s()
            if self.done or wake_s is None or wake_s > until_s:
                break
            self.now_s = max(self.now_s, wake_s)
            self.tick()
        else:
            raise AssertionError("the machine asks to be woken over and over")
        self.now_s = until_s
        if not self.done:
            self.tick()

    @running
    @rule(at_once=st.booleans())
    def leave(self, at_once: bool) -> None:
        if self.now_s > 8.0:
            self.do(self.machine.leave(self.now_s, at_once=at_once))

    @precondition(lambda self: self.done)
    @rule()
    def start_anew(self) -> None:
        self.begin()

    # --- invariants ---

    @invariant()
    def the_machine_knows_what_is_alive(self) -> None:
        assert {main_of(process)[0] for process in self.alive} <= set(self.machine.actors_alive)

    @invariant()
    def at_most_one_terminal_report_and_one_for_whoever_ended_in_its_incarnation(self) -> None:
        assert all(count == 1 for count in self.ended.values())
        if self.machine.phase == "up":
            mine = {key for key, incarnation in self.ordered.items() if incarnation == self.machine.incarnation}
            held = set(self.machine.actors_alive)
            assert mine == {key for key in mine if (key in held) != (key in self.ended)}

    @invariant()
    def nothing_is_meant_to_live_beyond_the_lease(self) -> None:
        if self.alive and self.machine.phase == "up":
            assert self.now_s < self.proven_until_s


AgentLife.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestAgentLife = AgentLife.TestCase
