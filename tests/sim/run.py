"""One simulation: a pool, a seed, faults for a while, then peace, and what must be true in the end.

python -m tests.sim.run SEED [--steps N]      replay one seed and show the end of its trace
python -m tests.sim.run --soak COUNT          many seeds, from --first on
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass

from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from tests.sim.allocator import SimAllocator
from tests.sim.client import SimClient
from tests.sim.node import SimNode
from tests.sim.operator import Operator
from tests.sim.oracle import Oracle
from tests.sim.server import Server
from tests.sim.world import SimulationFailed, World

PEACE_S = 60.0
STEPS = 4_000
YOUNG_S = 3.0
"""A pool younger than what the server loses would lose all of its log, and so the knowledge that there was one."""


@dataclass
class Result:
    """What a run did."""

    seed: int
    steps: int
    events: int
    seconds: float
    counts: dict[str, int]


class Simulation:
    """The parties and the plan of one run."""

    def __init__(
        self, seed: int, steps: int = STEPS, *, lose_tails: bool = True, operators: bool = False, refusals: bool = False
    ) -> None:
        self.world = world = World(seed)
        self.steps = steps
        self.lose_tails = lose_tails
        self.server = server = Server(world, Keys("sim"))
        dice = world.dice
        self.nodes = [SimNode(world, server, f"n{n}", dice.choice([2, 4])) for n in range(dice.randint(2, 3))]
        self.oracle = Oracle(world, server, self.nodes)
        for node in self.nodes:
            node.on_spawn = self.oracle.check_spawn
        self.allocators = [SimAllocator(world, server, n) for n in range(2)]
        self.operator = Operator(world, server, self.nodes, self.oracle) if operators else None
        self.refusals = random.Random(f"refusals {seed}") if refusals else None  # the other dice fall as without
        self.clients: list[SimClient] = []
        self.born = 0
        self.peace = False

    def run(self) -> Result:
        """All of it; raises SimulationFailed, or whatever went wrong in the code under test."""
        begun = time.perf_counter()
        for _ in range(3):
            self._new_client()
        self._users()
        self._trouble()
        self._refuse()
        world = self.world
        while world.steps < self.steps:
            world.run(world.now_s + 1.0)
        self._make_peace()
        self._check_the_end()
        for party in (*self.allocators,):
            party.kill()
        return Result(world.seed, world.steps, self.oracle.events, time.perf_counter() - begun, world.counts)

    def _new_client(self) -> None:
        self.born += 1
        self.clients.append(SimClient(self.world, self.server, f"c{self.born}"))

    def _users(self) -> None:
        if self.peace:
            return
        dice = self.world.dice
        for client in self.clients:
            if dice.random() < 0.5:
                client.act([t for t in self.oracle.state.tickets if dice.random() < 0.3])
        if sum(not client.over for client in self.clients) < 3:
            self._new_client()
        self.world.after(dice.uniform(0.05, 0.6), self._users)

    # --- trouble ---

    def _trouble(self) -> None:
        if self.peace:
            return
        dice, world = self.world.dice, self.world
        kinds = [
            self._kill_allocator,
            self._pause_allocator,
            self._stop_allocator,
            self._kill_agent,
            self._pause_agent,
            self._kill_keeper,
            self._power_loss,
            self._kill_client,
            self._close_client,
            self._pause_client,
            self._partition,
            self._partition,
            self._restart_server,
            self._restart_after_launch,
            self._restart_after_launch,
        ]
        kind = dice.choice(kinds)
        world.count(kind.__name__[1:])
        kind()
        world.after(dice.expovariate(1 / 2.0), self._trouble)

    def _kill_allocator(self) -> None:
        one = self.world.dice.choice(self.allocators)
        if one.process.alive:
            self.world.say(one.holder, "is killed")
            one.kill()
            self.world.after(self.world.dice.uniform(0.1, 5.0), one.start)

    def _pause_allocator(self) -> None:
        one = self.world.dice.choice(self.allocators)
        seconds = self.world.dice.uniform(0.5, 8.0)
        self.world.say(one.holder, f"is paused for {seconds:.1f} s")
        one.process.paused_until_s = self.world.now_s + seconds

    def _stop_allocator(self) -> None:
        one = self.world.dice.choice(self.allocators)
        if one.process.alive and not one.stopping:
            one.stopping = True

            def again() -> None:
                if one.process.alive:
                    one.kill()
                one.start()

            self.world.after(self.world.dice.uniform(3.0, 6.0), again)

    def _kill_agent(self) -> None:
        node = self.world.dice.choice(self.nodes)
        if node.up:
            node.kill_agent()

    def _pause_agent(self) -> None:
        node = self.world.dice.choice(self.nodes)
        if node.up:
            node.pause_agent(self.world.dice.uniform(0.2, 8.0))

    def _kill_keeper(self) -> None:
        node = self.world.dice.choice(self.nodes)
        if node.up:
            node.kill_keeper()

    def _power_loss(self) -> None:
        node = self.world.dice.choice(self.nodes)
        if node.up:
            node.power_loss(self.world.dice.uniform(0.5, 8.0))

    def _some_client(self) -> SimClient | None:
        alive = [client for client in self.clients if not client.over]
        return self.world.dice.choice(alive) if alive else None

    def _kill_client(self) -> None:
        client = self._some_client()
        if client is not None:
            self.world.say(client.client_id, "is killed")
            client.kill()

    def _close_client(self) -> None:
        client = self._some_client()
        if client is not None:
            client.close()

    def _pause_client(self) -> None:
        client = self._some_client()
        if client is not None:
            client.pause(self.world.dice.uniform(0.2, 8.0))

    def _partition(self) -> None:
        dice, world = self.world.dice, self.world
        parties = [n.name for n in self.nodes] + [a.name for a in self.allocators]
        parties += [c.client_id for c in self.clients if not c.over]
        cut = {party for party in parties if dice.random() < 0.3}
        seconds = dice.uniform(0.2, 8.0)
        world.say("network", f"cuts off {sorted(cut)} for {seconds:.1f} s")
        world.cut |= cut
        world.after(seconds, lambda: world.cut.difference_update(cut))

    def _restart_after_launch(self) -> None:
        """When there is most to lose."""
        world = self.world

        def soon() -> None:
            world.after(world.dice.uniform(0.02, 0.8), self._restart_server)

        self.oracle.on_launch = soon

    def _restart_server(self) -> None:
        if self.server.down or self.peace:
            return
        dice, world = self.world.dice, self.world
        down_s, lost_s = (
            dice.uniform(0.05, dice.choice([0.5, 4.0])),
            dice.choice([0.0, 0.2, 1.0, 1.5]) if self.lose_tails else 0.0,
        )
        if world.now_s < YOUNG_S:
            lost_s = 0.0
        self.server.stop()

        def back() -> None:
            gone = self.server.start(lost_s)
            world.count("writes lost", gone)
            world.say("server", f"is back after {down_s:.2f} s, without its last {gone} writes")
            self.oracle.rebuild()

        world.after(down_s, back)

    def _refuse(self) -> None:
        """The server is held up by a script, or full: now and then, for a while."""
        dice, world, server = self.refusals, self.world, self.server
        if dice is None or self.peace:
            return
        server.refuses = dice.choice(["BUSY a script runs", "OOM command not allowed"])
        world.count(f"refuses: {server.refuses[:4].strip()}")
        world.say("server", f"answers {server.refuses!r}")

        def over() -> None:
            server.refuses = ""
            world.say("server", "refuses nothing any more")
            world.after(dice.expovariate(1 / 6.0), self._refuse)

        world.after(dice.uniform(0.1, dice.choice([1.0, 6.0])), over)

    # --- the end ---

    def _make_peace(self) -> None:
        world = self.world
        self.peace, self.oracle.on_launch = True, None
        self.server.refuses = ""
        world.faults.none()
        world.run(world.now_s + 10.0)  # whoever was to come back is back
        world.cut.clear()
        world.say("world", "peace")
        for client in self.clients:
            client.quiet = True
        if self.operator is not None:
            world.run(world.now_s + PEACE_S / 2)
            self.operator.make_peace()
        world.run(world.now_s + PEACE_S)

    def _check_the_end(self) -> None:
        world = self.world
        for client in self.clients:
            if not client.over:
                waiting = [
                    (seq, one.request.TYPE)
                    for seq, one in client.machine.outstanding.items()
                    if one.queued is None and not one.abandoned and not client.closing
                ]
                if waiting:
                    raise SimulationFailed(f"I5: {client.client_id} still waits for {waiting}")
        for node in self.nodes:
            state = self.oracle.state.nodes.get(node.name)
            if not node.up or node.machine.phase != "up" or state is None or state.phase != "up":
                raise SimulationFailed(f"node {node.name} is not back: {node.machine.phase}")
            known = {
                actor.launch_id
                for ticket in self.oracle.state.tickets.values()
                for actor in ticket.actors
                if actor.alive and actor.node_id == node.name
            }
            held = set(node.machine.actors_alive)
            if known != held or not node.launches <= held:
                raise SimulationFailed(
                    f"{node.name} runs {sorted(node.running)}, holds {sorted(held)}, the pool knows of {sorted(known)}"
                )
        for client in self.clients:
            mine = {t for t, one in client.machine.tickets.items() if one.owned and not one.released}
            theirs = {
                t.ticket_id
                for t in self.oracle.state.tickets.values()
                if t.client_id == client.client_id and t.phase in ("allocated", "active")
            }
            if not client.over and not client.closing and mine != theirs:
                raise SimulationFailed(f"{client.client_id} holds {sorted(mine)}, the pool says {sorted(theirs)}")
        admin = SimClient(world, self.server, "admin")
        world.run(world.now_s + 2.0)
        for ticket in self.oracle.state.tickets.values():
            if ticket.spec.detached:
                admin.ask(r.ReleaseGang(ticket.ticket_id))
        for client in self.clients:
            if not client.over:
                client.close()
        world.run(world.now_s + PEACE_S)
        others = self.operator.clients if self.operator is not None else []
        self._check_nothing_is_left([*self.clients, *others, admin])

    def _check_nothing_is_left(self, clients: list[SimClient]) -> None:
        state = self.oracle.state
        for client in clients:
            lost = [seq for seq in client.asked if seq not in client.done and client.alive]
            abandoned = client.machine.outstanding
            missing = [seq for seq in lost if seq not in abandoned or not abandoned[seq].abandoned]
            if client.alive and not client.over and missing:
                raise SimulationFailed(f"I5: never answered to {client.client_id}: {missing}")
        if state.tickets:
            raise SimulationFailed(f"I3, I6: tickets are left: {sorted(state.tickets)}")
        for ticket in state.tickets.values():
            if ticket.halting:
                raise SimulationFailed(f"I11: {ticket.ticket_id} still waits for {ticket.halting} to end")
        for node in self.nodes:
            if node.running:
                raise SimulationFailed(f"{node.name} still runs {sorted(node.running)}")
            known = state.nodes[node.name]
            if known.free != known.total:
                raise SimulationFailed(f"I3: {node.name} has {known.free} of {known.total} free")
        self.oracle.check_replay()


def replay_command(
    seed: int, steps: int, operators: bool = False, refusals: bool = False, lose_tails: bool = True
) -> str:
    """The command that shows a seed again."""
    options = " --operators" * operators + " --refusals" * refusals + " --no-lost-tails" * (not lose_tails)
    return f"python -m tests.sim.run {seed} --steps {steps}{options}"


def simulate(
    seed: int, steps: int = STEPS, *, lose_tails: bool = True, operators: bool = False, refusals: bool = False
) -> Result:
    """Run one seed; a failure carries the end of the trace and the command that replays it."""
    simulation = Simulation(seed, steps, lose_tails=lose_tails, operators=operators, refusals=refusals)
    try:
        return simulation.run()
    except Exception as error:
        world = simulation.world
        trace = "\n".join(list(world.trace)[-80:])
        raise SimulationFailed(
            f"seed {seed} failed at {world.now_s:.3f} s, step {world.steps}: {type(error).__name__}: {error}\n{trace}\n"
            f"replay: {replay_command(seed, steps, operators, refusals, lose_tails)}"
        ) from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--no-lost-tails", action="store_true")
    parser.add_argument("--operators", action="store_true", help="somebody drains nodes, marks GPUs, repairs gangs")
    parser.add_argument("--refusals", action="store_true", help="the server is held up by scripts, or full, at times")
    options = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.soak)
    failed, steps, begun = 0, 0, time.perf_counter()
    totals: dict[str, int] = {}
    for seed in seeds:
        try:
            result = simulate(
                seed,
                options.steps,
                lose_tails=not options.no_lost_tails,
                operators=options.operators,
                refusals=options.refusals,
            )
        except SimulationFailed as error:
            failed += 1
            print(error if len(seeds) == 1 or failed <= 3 else str(error).splitlines()[0], flush=True)
            continue
        steps += result.steps
        for what, count in result.counts.items():
            totals[what] = totals.get(what, 0) + count
    seconds = time.perf_counter() - begun
    print(f"{len(seeds)} seeds, {failed} failed, {steps} steps in {seconds:.1f} s: {totals}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
