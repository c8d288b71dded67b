"""Random histories of a whole pool against the invariants I1 to I5 and I8.

``SPOKE_PROPERTY_EXAMPLES`` and ``SPOKE_PROPERTY_STEPS`` raise the effort; the defaults fit into CI.
"""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from spoke.events.lifecycle import ACTOR, NODE, TICKET
from spoke.events.model import GangSpec, Nic, NodeSpec, Resources
from spoke.events.queueing import QueuePolicy, Quota
from spoke.events.rules import Group, Rules
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec

EXAMPLES = int(os.environ.get("SPOKE_PROPERTY_EXAMPLES", "400"))
STEPS = int(os.environ.get("SPOKE_PROPERTY_STEPS", "50"))

NODES = ("n1", "n2", "n3")
reasons = st.sampled_from(["", "its fan rattles"])
CLIENTS = ("c1", "c2", "c3")


def placed(spec: NodeSpec, nics: int = 2) -> NodeSpec:
    """The node with a rack and NICs."""
    return replace(
        spec, labels={"rack": f"r{int(spec.node_id[-1]) % 2}"}, nics=tuple(Nic(f"m{at}:1") for at in range(nics))
    )


class PoolMachine(RuleBasedStateMachine):
    """Clients and agents do whatever they like, in any order; the pool must stay whole."""

    tickets: Bundle[str] = Bundle("tickets")

    @initialize()
    def begin(self) -> None:
        self.pool = MemoryPool()
        self.asked = {}  # (client, seq) -> request, for sending again
        for node in NODES:
            self.pool.register(placed(node_spec(node, 4)))
        self.sessions = {name: f"{name}.0" for name in CLIENTS}
        self.born = 0
        for client in CLIENTS:
            self._ask(client, r.ConnectClient(5_000))

    # --- clients ---

    @rule(client=st.sampled_from(CLIENTS))
    def connect(self, client: str) -> None:
        """A client id is never used for a second session."""
        if self.sessions[client] not in self.pool.state.clients:
            self.born += 1
            self.sessions[client] = f"{client}.{self.born}"
        self._ask(client, r.ConnectClient(5_000))

    @rule(client=st.sampled_from(CLIENTS))
    def close(self, client: str) -> None:
        self._ask(client, r.CloseClient())

    @rule(
        target=tickets,
        client=st.sampled_from(CLIENTS),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 1, 2, 0.25, 0.4, 0.999])),
        gpu_memory=st.sampled_from([0, 0, "10GiB", "33GiB"]),
        cpus=st.sampled_from([0.0, 1.5]),
        strict=st.booleans(),
        timeout=st.sampled_from([0, 500, None]),
        detached=st.booleans(),
        on_failure=st.sampled_from(["release", "report"]),
        preferred=st.sampled_from([None, *NODES]),
        terms=st.builds(
            Terms,
            priority=st.integers(0, 2),
            project=st.sampled_from(["", "x", "y"]),
            expected_ms=st.sampled_from([0, 300, 5_000]),
            max_ms=st.sampled_from([0, 0, 900]),
            preemptible=st.booleans(),
            reservation=st.sampled_from(["", "", "", "r-1", "r-2"]),
        ),
    )
    def allocate(self, client, shape, gpu_memory, cpus, strict, timeout, detached, on_failure, preferred, terms):  # type: ignore[no-untyped-def]
        spec = gang(
            *shape,
            gpu_memory=0 if shape[2] in (1, 2) else gpu_memory,
            cpus=cpus,
            strict_pack=strict,
            detached=detached,
            on_failure=on_failure,
            preferred_node=preferred,
            terms=terms,
        )
        before = self.pool.state.next_ticket
        self._ask(client, r.AllocateGang(spec, timeout))
        return f"t-{before}" if self.pool.state.next_ticket > before else multiple()

    @rule(client=st.sampled_from(CLIENTS), ids=st.sets(st.integers(0, 5), min_size=2, max_size=2))
    def allocate_specific(self, client: str, ids: set[int]) -> None:
        self._ask(client, r.AllocateGang(gang(1, 2, 1, gpu_ids=tuple(sorted(ids))), 0))

    @rule(
        target=tickets,
        client=st.sampled_from(CLIENTS),
        asked=st.builds(
            Rules,
            strategy=st.sampled_from(["pack", "spread", "strict_pack", "strict_spread"]),
            where=st.sampled_from([{}, {"rack": "r0"}]),
            near=st.sampled_from(["", NODES[0]]),
            exclusive=st.booleans(),
            same=st.sampled_from(["", "rack"]),
        ),
        size=st.integers(1, 3),
        nics=st.integers(0, 1),
        mixed=st.booleans(),
        timeout=st.sampled_from([0, None]),
    )
    def allocate_by_rules(self, client, asked, size, nics, mixed, timeout):  # type: ignore[no-untyped-def]
        before = self.pool.state.next_ticket
        if mixed:
            groups = (
                Group("a", 1, 1, Resources(cpus=1, nics=nics)),
                Group("b", size, 2, Resources(gpus=1), min_nodes=1),
            )
            spec = GangSpec(1 + size, 1, groups=groups, rules=replace(asked, strategy="pack"))
        else:
            spec = GangSpec(size, 1, Resources(gpus=1, nics=nics), strict_pack=False, rules=asked, min_nodes=1)
        self._ask(client, r.AllocateGang(spec, timeout))
        return f"t-{before}" if self.pool.state.next_ticket > before else multiple()

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets)
    def release(self, client: str, ticket: str) -> None:
        self._ask(client, r.ReleaseGang(ticket))

    @rule(client=st.sampled_from(CLIENTS), back=st.integers(0, 5))
    def cancel(self, client: str, back: int) -> None:
        self._ask(client, r.CancelGang(max(0, self.pool.seqs[self.sessions[client]] - back)))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets)
    def attach(self, client: str, ticket: str) -> None:
        self._ask(client, r.AttachGang(ticket))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets, ranks=st.sets(st.integers(0, 4), max_size=4))
    def launch(self, client: str, ticket: str, ranks: set[int]) -> None:
        self.pool.launch(self.sessions[client], ticket, tuple(sorted(ranks)))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets)
    def launch_all(self, client: str, ticket: str) -> None:
        """What clients nearly always do; agents obey at once, and some or all actors come up."""
        found = self.pool.state.tickets.get(ticket)
        if found is not None and found.slots:
            self.pool.launch(self.sessions[client], ticket, tuple(range(len(found.slots))))
            self.pool.settle()

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets, rank=st.integers(-1, 4))
    def stop(self, client: str, ticket: str, rank: int) -> None:
        self._ask(client, r.StopActor(ticket, rank))

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        """A client is not sure that its request arrived."""
        if self.asked:
            client, seq = data.draw(st.sampled_from(sorted(self.asked)))
            events = len(self.pool.log)
            known = self.pool.state.client(client) is not None
            self.pool.request(client, self.asked[client, seq], seq=seq)
            if known:
                assert len(self.pool.log) == events, "a request was decided twice"
            else:  # it never connected, so nothing of it is remembered
                del self.asked[client, seq]
                del self.pool.answers[client, seq]

    @rule(client=st.sampled_from(CLIENTS), name=st.sampled_from(["", "gang.allocate", "no.such"]))
    def garbage(self, client: str, name: str) -> None:
        raw = {b"type": name.encode(), b"v": b"1", b"client_id": self.sessions[client].encode(), b"body": b"{"}
        self.pool.handle(r.decode_request(raw))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets, rank=st.integers(0, 4), elsewhere=st.booleans())
    def repair(self, client: str, ticket: str, rank: int, elsewhere: bool) -> None:
        self._ask(client, r.RepairGang(ticket, rank, elsewhere))

    # --- operators ---

    @rule(client=st.sampled_from(CLIENTS), node=st.sampled_from(NODES), cordon=st.booleans(), reason=reasons)
    def cordon(self, client: str, node: str, cordon: bool, reason: str) -> None:
        self._ask(client, r.CordonNode(node, reason) if cordon else r.UncordonNode(node))

    @rule(
        client=st.sampled_from(CLIENTS),
        node=st.sampled_from(NODES),
        deadline_ms=st.sampled_from([None, 0, 1_000]),
        wait=st.booleans(),
        reason=reasons,
    )
    def drain(self, client: str, node: str, deadline_ms: int | None, wait: bool, reason: str) -> None:
        self._ask(client, r.DrainNode(node, deadline_ms, reason, wait=wait))

    @rule(client=st.sampled_from(CLIENTS), node=st.sampled_from(NODES), force=st.booleans(), reason=reasons)
    def remove(self, client: str, node: str, force: bool, reason: str) -> None:
        self._ask(client, r.RemoveNode(node, force, reason))

    @rule(
        client=st.sampled_from(CLIENTS),
        node=st.sampled_from(NODES),
        index=st.integers(0, 4),
        healthy=st.booleans(),
        reason=reasons,
    )
    def mark(self, client: str, node: str, index: int, healthy: bool, reason: str) -> None:
        self._ask(client, r.MarkGpu(node, index, healthy, reason))

    @rule(node=st.sampled_from(NODES), sick=st.dictionaries(st.integers(0, 5), st.sampled_from(["", "ecc", "xid"])))
    def report_health(self, node: str, sick: dict[int, str]) -> None:
        if node in self.pool.agents:
            gpus = tuple(r.GpuReport(index, f"{node}-gpu-{index}", kind, kind) for index, kind in sick.items())
            self.pool.report(self.pool.agents[node], r.ReportHealth(gpus))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets, to=st.sampled_from(["head", "tail"]))
    def move(self, client: str, ticket: str, to: str) -> None:
        self._ask(client, r.MoveGang(ticket, to))  # type: ignore[arg-type]

    @rule(
        client=st.sampled_from(CLIENTS),
        policy=st.builds(
            QueuePolicy,
            order=st.sampled_from(["fifo", "priority", "fair"]),
            backfill=st.booleans(),
            preempt=st.booleans(),
            half_life_ms=st.sampled_from([1_000, 60_000]),
            notice_ms=st.sampled_from([0, 400]),
            depth=st.sampled_from([1, 64]),
        ),
    )
    def set_policy(self, client: str, policy: QueuePolicy) -> None:
        self._ask(client, r.SetQueuePolicy(policy))

    @rule(client=st.sampled_from(CLIENTS), ticket=tickets, priority=st.integers(-1, 3))
    def prioritize(self, client: str, ticket: str, priority: int) -> None:
        self._ask(client, r.PrioritizeGang(ticket, priority))

    @rule(
        client=st.sampled_from(CLIENTS),
        project=st.sampled_from(["x", "y", "*"]),
        gpus=st.sampled_from([None, 1_500, 4_000]),
        borrow=st.booleans(),
    )
    def set_quota(self, client: str, project: str, gpus: int | None, borrow: bool) -> None:
        if gpus is None:
            self._ask(client, r.RemoveQuota(project))
        else:
            self._ask(client, r.SetQuota(Quota(project, gpus, borrow=borrow)))

    @rule(
        client=st.sampled_from(CLIENTS),
        nodes=st.integers(1, 2),
        after_ms=st.sampled_from([0, 500]),
        length_ms=st.sampled_from([1_000, 3_000]),
    )
    def make_reservation(self, client: str, nodes: int, after_ms: int, length_ms: int) -> None:
        self._ask(client, r.CreateReservation(nodes, 2, length_ms, self.pool.now_ms + after_ms))

    @rule(client=st.sampled_from(CLIENTS), number=st.integers(1, 3))
    def cancel_reservation(self, client: str, number: int) -> None:
        self._ask(client, r.CancelReservation(f"r-{number}"))

    # --- agents ---

    @rule(node=st.sampled_from(NODES), gpus=st.sampled_from([2, 4, 4, 4, 6]), machine=st.sampled_from("mmx"))
    def register(self, node: str, gpus: int, machine: str) -> None:
        old = self.pool.agents.get(node)
        if old is not None and not old.rejected and machine == old.spec.machine:
            old.processes.clear()  # whoever registers on the same machine has swept it
        agent = self.pool.register(placed(node_spec(node, gpus, machine=machine), nics=gpus // 2))
        while self.pool.deliver(agent):
            pass
        if agent.rejected and old is not None:
            self.pool.agents[node] = old

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 5))
    def obey(self, node: str, count: int) -> None:
        agent = self.pool.agents.get(node)
        for _ in range(count):
            if agent is not None:
                self.pool.deliver(agent)

    @rule(node=st.sampled_from(NODES), data=st.data(), what=st.sampled_from(["start", "fail", "end", "crash"]))
    def act(self, node: str, data: st.DataObject, what: str) -> None:
        agent = self.pool.agents.get(node)
        if agent is None or not agent.processes:
            return
        launch_id = data.draw(st.sampled_from(sorted(agent.processes)))
        if what == "start":
            self.pool.start(agent, launch_id)
        elif what == "fail" and launch_id not in agent.started:
            self.pool.fail(agent, launch_id)
        else:
            self.pool.end(agent, launch_id, code=1 if what == "crash" else 0)

    @rule(node=st.sampled_from(NODES))
    def lose_node(self, node: str) -> None:
        if node in self.pool.agents:
            self.pool.expire_node(node)

    @rule(node=st.sampled_from(NODES))
    def leave(self, node: str) -> None:
        agent = self.pool.agents.get(node)
        if agent is not None:
            agent.processes.clear()
            self.pool.report(agent, r.LeaveNode())

    @rule(client=st.sampled_from(CLIENTS))
    def lose_client(self, client: str) -> None:
        self.pool.expire_client(self.sessions[client])

    @rule(ms=st.integers(1, 2_000))
    def wait(self, ms: int) -> None:
        self.pool.pass_time(ms)

    # --- what must hold ---

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()

    def teardown(self) -> None:
        """In the end everybody goes, and everything must be free and answered."""
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        pool.check_replay(len(pool.log) // 2)
        pool.settle()
        pool.connect("last")
        for ticket_id in sorted(pool.state.tickets):
            pool.request("last", r.ReleaseGang(ticket_id))
        pool.settle()
        pool.check()
        assert pool.state.tickets == {}
        for node in pool.state.nodes.values():
            assert node.free == node.total, "I3: something leaked"
        unanswered = [key for key in pool.sent if not pool.answers[key] and key in self.asked]
        assert unanswered == [], f"I5: never answered: {unanswered}"

    def _ask(self, client: str, request: r.Request) -> None:
        session = self.sessions[client]
        self.asked[session, self.pool.request(session, request)] = request


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_the_tables_agree_with_the_events() -> None:
    from spoke.events.types import EVENT_TYPES

    for table in (TICKET, ACTOR, NODE):
        assert {name for _, name in table} <= set(EVENT_TYPES)
