"""What must hold, checked at every commit and in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.codec import decode_event
from spoke.events.fold import fold
from spoke.events.invariants import violations
from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.walk import Launch, decided_twice, launch_of
from tests.sim.node import Running, SimNode
from tests.sim.server import Direct, Server, raw
from tests.sim.world import SimulationFailed, World


class Oracle:
    """Folds what the server takes, and compares it with what the nodes truly run."""

    def __init__(self, world: World, server: Server, nodes: list[SimNode]) -> None:
        self.world, self.server, self.nodes = world, server, {node.name: node for node in nodes}
        self.state = PoolState()
        self.answers: set[tuple[str, int]] = set()
        self.events = 0
        self.log: list[e.Recorded] | None = None
        """All events, for who sets a list."""
        self.on_launch: Callable[[], None] | None = None
        self._previous: Launch | None = None
        self._generations: dict[tuple[str, int], set[str]] = {}  # ticket and generation -> the launches it restarts
        server.on_commit = self._committed

    def rebuild(self) -> None:
        """The log has lost its end: history is what is left of it."""
        log: Any = Direct(self.server)
        keys = self.server.keys
        self.state = EventLog(log, keys.events, keys.snapshot).recover()
        self.answers.clear()
        self._previous = None

    def _committed(self, commands: list[list[Any]]) -> None:
        keys = self.server.keys
        for verb, key, *args in commands:
            if verb == "XADD" and key == keys.events:
                fields = [raw(one) for one in args[1:]]
                self._event(args[0].decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
            elif verb == "XADD" and key.startswith(keys.reply("")):
                self._told(key.removeprefix(keys.reply("")), args[4:])
        found = violations(self.state)
        if found:
            raise SimulationFailed("; ".join(found))

    def _event(self, event_id: str, fields: dict[bytes, bytes]) -> None:
        recorded = decode_event(event_id, fields)
        event = recorded.event
        self.events += 1
        if self.log is not None:
            self.log.append(recorded)
        self.world.say("log", f"{event_id} {event}"[:230])
        twice = list(decided_twice(self.state, recorded.event, self._previous))
        if twice:
            raise SimulationFailed(twice[0])
        if isinstance(event, (e.GangAllocated, e.GangRepaired)):
            for slot in event.slots if isinstance(event, e.GangAllocated) else (event.slot,):
                busy = self.nodes[slot.node_id].busy_gpus() & set(slot.gpu_ids)
                if busy:
                    runs = {k: one.order.ticket_id for k, one in self.nodes[slot.node_id].running.items()}
                    raise SimulationFailed(
                        f"I4: {event.ticket_id} gets GPUs {sorted(busy)} of {slot.node_id}, where these run: {runs}"
                    )
        if isinstance(event, e.NodeLost):
            self._check_dead(event)
        if isinstance(event, e.GangRestarting):
            actors = [self.state.tickets[event.ticket_id].actor(rank) for rank in event.ranks]
            self._generations[event.ticket_id, event.generation] = {one.launch_id for one in actors if one is not None}
            self.world.count("gang restarts")
        fold(self.state, recorded)
        self._previous = launch_of(event)
        if isinstance(event, e.ActorLaunchRequested) and self.on_launch is not None:
            act, self.on_launch = self.on_launch, None
            act()

    def check_spawn(self, run: Running) -> None:
        """I11: a gang is started again only when nothing of any of its members runs."""
        restart = run.order.spec.restart
        if run.part or not run.restarts or restart is None or restart.policy != "gang":
            return
        launches = self._generations.get((run.order.ticket_id, run.restarts), set())
        for node in self.nodes.values():
            for other in node.running.values():
                if other.order.launch_id in launches and other.restarts != run.restarts:
                    raise SimulationFailed(
                        f"I11: {run.order.ticket_id} starts generation {run.restarts}, but rank {other.order.rank} "
                        f"still runs on {node.name} as generation {other.restarts}"
                    )

    def _check_dead(self, event: e.NodeLost) -> None:
        """I7: when the pool takes a node for lost, nothing runs there any more."""
        node = self.nodes[event.node_id]
        same = node.up and node.machine.incarnation == self.state.nodes[event.node_id].incarnation
        if same and node.running:
            raise SimulationFailed(f"I7: {event.node_id} is lost ({event.reason}) and runs {sorted(node.running)}")

    def _told(self, client_id: str, told: list[Any]) -> None:
        for seq in told[::2]:
            number = int(seq)
            if (client_id, number) in self.answers:
                raise SimulationFailed(f"I5: request {number} of {client_id} was answered before")
            if number and self.state.client(client_id) is not None:  # strangers are not remembered
                self.answers.add((client_id, number))

    def check_replay(self) -> None:
        """I8, and that the log says the same as what was checked along the way."""
        log: Any = Direct(self.server)
        keys = self.server.keys
        events = EventLog(log, keys.events, keys.snapshot)
        ours = snapshot.encode(self.state)
        if snapshot.encode(events.recover()) != ours or snapshot.encode(events.replay()) != ours:
            raise SimulationFailed("I8: snapshot and later events do not fold to what the log does")
