"""Operators at work: nodes in and out of service, GPUs that fall ill and recover, tickets moved and repaired."""

from __future__ import annotations

import random

from spoke.protocol import requests as r
from tests.sim.client import SimClient
from tests.sim.node import SimNode
from tests.sim.oracle import Oracle
from tests.sim.server import Server
from tests.sim.world import World


class Operator:
    """One who cannot leave the pool alone. Its dice are its own, so that a seed without it stays what it was."""

    def __init__(self, world: World, server: Server, nodes: list[SimNode], oracle: Oracle) -> None:
        self._world, self._server, self._nodes, self._oracle = world, server, nodes, oracle
        self._dice = random.Random(world.seed + 1_000_003)
        self._born = 0
        self._peace = False
        self.client = self._connect()
        self.clients = [self.client]
        self._work()

    def _connect(self) -> SimClient:
        self._born += 1
        return SimClient(self._world, self._server, f"op{self._born}")

    def _work(self) -> None:
        if self._peace:
            return
        if self.client.over:
            self.client = self._connect()
            self.clients.append(self.client)
        elif self.client.machine.connected and len(self.client.machine.outstanding) < 20:
            self._operate()
        self._world.after(self._dice.uniform(0.1, 1.5), self._work)

    def _operate(self) -> None:
        dice, state = self._dice, self._oracle.state
        node = dice.choice(self._nodes)
        waiting, live = list(state.queue), [t for t in state.tickets.values() if t.slots]
        what = dice.choice(
            ["cordon", "uncordon", "uncordon", "drain", "remove", "mark", "ill", "move", "repair", "explain"]
        )
        self._world.count(f"operator: {what}")
        match what:
            case "cordon":
                self.client.ask(r.CordonNode(node.name, dice.choice(["why not", "another reason"])))
            case "uncordon":
                self.client.ask(r.UncordonNode(node.name))
            case "drain":
                deadline_ms = dice.choice([None, 500, 3_000])
                reason = dice.choice(["", "new kernel"])
                self.client.ask(r.DrainNode(node.name, deadline_ms, reason, wait=dice.random() < 0.5))
            case "remove":
                self.client.ask(r.RemoveNode(node.name, dice.random() < 0.3))
            case "mark":
                self.client.ask(r.MarkGpu(node.name, dice.randrange(node.gpus), dice.random() < 0.6))
            case "ill":
                ill = {index: ("ecc", "bits flip") for index in range(node.gpus) if dice.random() < 0.2}
                if node.up:
                    node.fall_ill(ill)
            case "move" if waiting:
                self.client.ask(r.MoveGang(dice.choice(waiting), dice.choice(["head", "tail"])))
            case "repair" if live:
                ticket = dice.choice(live)
                ended = [actor.rank for actor in ticket.actors if not actor.alive]
                rank = dice.choice(ended) if ended else dice.randrange(len(ticket.slots))
                self.client.ask(r.RepairGang(ticket.ticket_id, rank, dice.random() < 0.3))
            case "explain" if state.tickets:
                self.client.ask(r.ExplainGang(dice.choice(sorted(state.tickets))))

    def make_peace(self) -> None:
        """Put everything back into service."""
        self._peace = True
        if self.client.over:
            self.client = self._connect()
            self.clients.append(self.client)
        for node in self._nodes:
            self.client.ask(r.UncordonNode(node.name))
            if node.up:
                node.fall_ill({})
            for index in range(node.gpus):
                self.client.ask(r.MarkGpu(node.name, index, True))
