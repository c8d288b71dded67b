"""The agent: the shell around its state machine.

One thread (the one that calls ``run``) feeds the machine and does what it says; everything that happens comes to it
through one queue: orders, renewals, the keeper's messages, signals. Threads and not an event loop, since the keeper
must be started by a thread that lives as long as the agent, and since each conversation with the server may block.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from spoke.agent import instructions as i
from spoke.agent import inventory
from spoke.agent.claim import NodeClaim, mark_prefix
from spoke.agent.clock import clock_s
from spoke.agent.config import AgentConfig
from spoke.agent.conversation import Outage
from spoke.agent.directory import Directory
from spoke.agent.health import Health
from spoke.agent.launching import Site, prepare, prepare_helper
from spoke.agent.link import KeeperLink
from spoke.agent.liveness import Prober
from spoke.agent.logs.access import admit
from spoke.agent.logs.janitor import Janitor
from spoke.agent.logs.room import parse_room
from spoke.agent.logs.server import LogServer
from spoke.agent.logs.shelf import Shelf
from spoke.agent.machine import AgentMachine, Settings
from spoke.agent.node import check_key, health_monitor, node_spec
from spoke.agent.ports import HeldPorts
from spoke.agent.torchrun import ERROR_FILE, read_error
from spoke.agent.wire import LeaseRenewer, OrderReader, RequestSender
from spoke.errors import NodeRefused, SpokeError, from_code
from spoke.events.names import check_name
from spoke.protocol.arrival import arrived
from spoke.protocol.keys import Keys
from spoke.protocol.orders import Delivery
from spoke.protocol.server import check_server, connect
from spoke.protocol.url import mask_url

if TYPE_CHECKING:
    from spoke.agent.watcher import LogWatcher, Watcher

log = logging.getLogger("spoke.agent")

FLUSH_S_MAX = 5.0
PORTS_AGAIN_S = 5.0

_Input = Callable[[float], Iterable[i.Instruction]]


def run_agent(config: AgentConfig, meters: Watcher | None = None, log_watcher: LogWatcher | None = None) -> None:
    """Serve a node until SIGTERM or SIGINT (a second one stops the actors without grace).

    Call it from the main thread of a process of its own. Returns after an orderly end; raises SpokeError where the
    node cannot be served: no usable server, the node id is taken, no GPU driver, processes that cannot be killed.
    """
    agent = Agent(config, meters, log_watcher)
    try:
        agent.run()
    finally:
        agent.close()


class Agent:
    """One agent. Making it claims the node, checks the server and clears what an earlier agent left; ``run`` serves."""

    def __init__(
        self, config: AgentConfig, meters: Watcher | None = None, log_watcher: LogWatcher | None = None
    ) -> None:
        self._meters, self._log_watcher = meters, log_watcher
        check_name("the node id", config.node_id)
        check_key(config)
        keys = Keys(config.pool)
        self._config = config
        self._inbox: queue.SimpleQueue[_Input] = queue.SimpleQueue()
        self._closers: list[Callable[[], None]] = []
        self._asked_to_stop = 0
        self._quit: i.Quit | None = None
        self._ports_at_s: float | None = None
        self._error_files: dict[str, dict[str, str]] = {}
        try:
            self._build(config, keys)
        except BaseException:
            self.close()
            raise

    def _build(self, config: AgentConfig, keys: Keys) -> None:
        with connect(config.url, pool=config.pool) as client:
            self._arrived(lambda: check_server(client, config.url))
        mark = mark_prefix(inventory.server_place(config.url), config.pool, config.node_id)
        claim = NodeClaim(config.run_dir, mark, config.pool, config.node_id)
        self._closers.append(claim.release)
        swept = claim.sweep()
        if swept:
            log.warning("killed %d processes that an earlier agent of this node left behind", swept)
        self._ports = HeldPorts(config.ports)
        self._closers.append(self._ports.close)
        spec = node_spec(config, self._ports)
        settings = Settings(
            spec,
            secrets.token_hex(6),
            config.lease_ms,
            start_limit_s=config.start_limit_s,
            leave_s_max=config.leave_s_max,
        )
        self._machine = AgentMachine(settings)
        cwd = os.getcwd()
        log_dir = config.log_dir.absolute()
        self._directory = Directory(config.url, keys)
        self._closers.append(self._directory.stop)
        address, directory = spec.address, self._directory.name
        self._site = Site(
            config.pool,
            config.node_id,
            mark,
            address,
            config.imports,
            log_dir,
            cwd,
            directory,
            config.log_bytes,
            config.log_files,
            config.allow_commands,
        )
        self._base_env = dict(os.environ)
        self._shelf = Shelf(log_dir, config.pool, config.node_id, key=config.key)
        self._keeper = KeeperLink(self._heard, (claim.fd,), mark + "keeper")
        self._closers.append(self._keeper.close)
        self._prober = Prober(self._probed)
        self._closers.append(self._prober.stop)
        outage = Outage(config.url)
        self._sender = RequestSender(config.url, keys, outage, config.key)
        self._reader = OrderReader(config.url, keys, config.node_id, outage, self._ordered, self._missed)
        self._renewer = LeaseRenewer(config.url, keys, config.node_id, outage, config.lease_ms, self._renewed)
        self._closers += [self._sender.stop, self._reader.stop, self._renewer.stop]
        self._logs = LogServer(config.url, keys, config.node_id, outage, self._shelf, self._log_watcher)
        room = parse_room(config.log_total)
        self._janitor = Janitor(config.url, keys, outage, log_dir, config.log_keep_s, room, self._log_watcher)
        self._closers += [self._logs.stop, self._janitor.stop]
        self._monitor = health_monitor(config, spec, self._found_health)
        if self._monitor is not None:
            self._closers.append(self._monitor.stop)

    def close(self) -> None:
        """Give everything back, the keeper and what still runs first."""
        while self._closers:
            try:
                self._closers.pop()()
            except Exception:
                log.exception("closing the agent")

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until asked to stop; raises SpokeError if the node cannot be served any more."""
        self._arrived(self._reader.start)
        self._directory.start()
        self._sender.start()
        self._renewer.start()
        self._logs.start()
        self._janitor.start()
        if self._monitor is not None:
            self._monitor.start()
        former = self._take_signals()
        try:
            self._do(self._machine.start(clock_s()))
            while self._quit is None:
                self._turn()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        self._sender.flush(FLUSH_S_MAX)
        if self._quit.error:
            error = from_code(self._quit.code, self._quit.error)
            raise error if isinstance(error, NodeRefused) else NodeRefused(self._quit.error)
        log.info("stopped")

    def _turn(self) -> None:
        """Wait for one thing to happen, or for the time of the next one, and deal with it."""
        times = [at_s for at_s in (self._machine.wake_at_s(), self._ports_at_s) if at_s is not None]
        timeout_s = max(0.0, min(times) - clock_s()) if times else None
        try:
            happened = self._inbox.get(timeout=None if timeout_s is None else min(timeout_s, 3600.0))
        except queue.Empty:
            happened = None
        now_s = clock_s()
        self._do(self._machine.tick(now_s))  # first: what came too late must find the lease run out
        if happened is not None and self._quit is None:
            self._do(happened(now_s))
        if self._ports_at_s is not None and now_s >= self._ports_at_s:
            self._ports_at_s = None if self._ports.hold_lost() else now_s + PORTS_AGAIN_S

    def _take_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End ``run`` in order; called again, without the actors' grace. For signal handlers and other threads."""
        self._asked_to_stop += 1
        at_once = self._asked_to_stop > 1

        def leave(now_s: float) -> Iterable[i.Instruction]:
            steps = self._machine.leave(now_s, at_once=at_once)
            log.info("told to stop: stopping the actors%s", " without grace" if at_once else "")
            return steps

        self._inbox.put(leave)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _arrived(self, work: Callable[[], None]) -> None:
        arrived(work, self._config.url, wait_s=self._config.server_wait_s, log=log)

    def _missed(self) -> None:
        self._inbox.put(self._machine.orders_lost)

    def _ordered(self, delivery: Delivery) -> None:
        self._inbox.put(lambda now_s: self._machine.order(delivery, now_s))

    def _renewed(self, incarnation: str, sent_at_s: float, held: bool | None) -> None:
        self._inbox.put(lambda now_s: self._machine.renewed(incarnation, sent_at_s, held, now_s))

    def _found_health(self, found: Health) -> None:
        plain = {index: (trouble.kind, trouble.reason) for index, trouble in found.items()}
        self._inbox.put(lambda now_s: self._machine.health(plain))

    def _heard(self, generation: int, message: dict[str, Any] | None) -> None:
        self._inbox.put(lambda now_s: self._on_keeper(generation, message, now_s))

    def _on_keeper(self, generation: int, message: dict[str, Any] | None, now_s: float) -> Iterable[i.Instruction]:
        machine = self._machine
        if generation != self._keeper.generation:
            return []
        if message is None:
            log.error("the keeper (pid %d) died; its actors are killed", self._keeper.pid)
            self._keeper.revive()
            return machine.keeper_lost(clock_s())
        match message["is"]:
            case "started":
                return machine.started(message["id"], message["pid"], "", now_s)
            case "status":
                return self._on_status(message, now_s)
            case "failed":
                return machine.failed(message["id"], message["reason"], now_s)
            case "ended":
                said = read_error(self._error_files.pop(message["id"], {}))
                told = list(machine.explained(message["id"], said)) if said else []
                return told + machine.ended(message["id"], message["code"], message["signal"], message["tail"], now_s)
            case "lost":
                self._shelf.lost(message["log"], message["bytes"], message["why"])
            case "fenced":
                log.error("the keeper killed the actors: the agent had not extended the lease in time")
        return []

    def _on_status(self, message: dict[str, Any], now_s: float) -> Iterable[i.Instruction]:
        try:
            said = msgspec.json.decode(message["line"], type=dict[str, Any])
            if "ready" in said:
                return self._machine.started(message["id"], message["pid"], str(said["ready"]["address"]), now_s)
            reason = str(said["failed"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            reason = f"its process said {message['line'][:500]!r} instead of whether it is up"
        return self._machine.failed(message["id"], reason, now_s)

    def _probed(self, launch_id: str, number: tuple[int, int], trouble: str) -> None:
        self._inbox.put(lambda now_s: self._machine.probed(launch_id, number, trouble, now_s))

    # --- what to do --------------------------------------------------------------------------------------------------

    def _do(self, steps: Iterable[i.Instruction]) -> None:
        for step in steps:
            if self._meters is not None:
                self._meters.watch(step)
            match step:
                case i.Send(envelope):
                    self._sender.send(envelope)
                case i.DropUnsent():
                    self._sender.drop_unsent()
                case i.Renew(incarnation, lease_ms):
                    self._renewer.renew(incarnation, lease_ms)
                case i.ExtendLease(until_s):
                    self._keeper.extend_lease(until_s)
                case i.Spawn() | i.SpawnHelper():
                    self._spawn(step)
                case i.Probe():
                    self._prober.probe(step)
                case i.StopProcess(launch_id, grace_s):
                    self._keeper.stop(launch_id, grace_s)
                case i.Notify(launch_ids, notice):
                    if notice is not None:
                        self._directory.post(notice)
                    for launch_id in launch_ids:
                        self._keeper.ring(launch_id)
                case i.KillAll():
                    self._keeper.kill_all()
                case i.KillKeeper():
                    log.error("the keeper did not kill its actors in time: killing the keeper")
                    self._keeper.kill()
                case i.LendPort(port):
                    self._ports.lend(port)
                case i.HoldPort(port):
                    if not self._ports.hold(port):
                        log.warning("port %d is still in use after its ticket has ended", port)
                        self._ports_at_s = clock_s() + PORTS_AGAIN_S
                case i.Joined():
                    where = mask_url(self._config.url)
                    log.info("node %s is up in pool %s at %s", self._config.node_id, self._config.pool, where)
                case i.Warn(text):
                    log.warning("%s", text)
                case i.Quit():
                    self._quit = step

    def _spawn(self, step: i.Spawn | i.SpawnHelper) -> None:
        launch_id = step.order.launch_id
        try:
            if isinstance(step, i.SpawnHelper):
                prepared = prepare_helper(step, self._site, self._base_env)
            else:
                prepared = prepare(step, self._site, self._base_env)
                with suppress(OSError):  # what cannot be written is told by the keeper
                    admit(self._site.log_dir / step.order.ticket_id, prepared.log_key)
        except SpokeError as error:
            if isinstance(step, i.SpawnHelper):
                log.error("%s of launch %s cannot be run: %s", step.part, launch_id, error)
                self._do(self._machine.ended(f"{launch_id}+{step.part}", -1, 0, "", clock_s()))
                return
            self._do(self._machine.failed(launch_id, str(error), clock_s(), for_good=True))
            self._do(self._machine.ended(launch_id, -1, 0, "", clock_s()))
            return
        if ERROR_FILE in prepared.spec["env"] and isinstance(step, i.Spawn):
            self._error_files[launch_id] = {ERROR_FILE: prepared.spec["env"][ERROR_FILE]}
        if self._meters is not None and isinstance(step, i.Spawn):
            self._meters.spawned(launch_id)
        self._keeper.spawn(prepared)
