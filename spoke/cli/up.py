"""``spoke up``: everything on this machine. A server, an allocator and agents, as children of one process.

They end with it: in order on Ctrl-C and SIGTERM (agents, allocator, server), by the kernel should it be killed. The
agents and the allocator are killed then, since an agent's keeper takes its actors along; the server is asked to stop,
so that its data is on disk.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.output import complain, count, say
from spoke.errors import InvalidRequest, SpokeError

if TYPE_CHECKING:
    from spoke.cli.children import Child
    from spoke.cli.embedded import EmbeddedServer

DEFAULT_PORT = 6379
AGENTS_MAX = 256
START_TIMEOUT_S = 60.0
WATCH_EVERY_S = 0.2
RESTART_AFTER_S = 1.0
LIVED_S = 10.0
"""A child that ends sooner than this after its start has failed to start; after some such failures we give up."""
FAILURES_MAX = 3
AGENT_STEPS = ((signal.SIGTERM, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
ALLOCATOR_STEPS = ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))


def default_data() -> Path:
    """Where the data is if nothing else is said: ``spoke/data`` in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "spoke" / "data"


def up(
    agents: Annotated[int, typer.Option(min=0, max=AGENTS_MAX, metavar="N", help="How many agents (nodes).")] = 2,
    gpus: Annotated[
        str, typer.Option(metavar="N|auto", help="Logical GPUs of each; auto: the real ones (with one agent).")
    ] = "4",
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, metavar="PORT", help="The server's port (default: 6379 if it is free, else one that is)."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The server's data and all logs (default: ~/.local/state/spoke/data)."),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module, or a .py file, that registers actor types."),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="The pool; else SPOKE_POOL, else `default`.")
    ] = None,
) -> None:
    """Run everything on this machine: a server, an allocator and agents. Ctrl-C ends it all; the data stays."""
    from spoke.cli.daemons import check_imports, parse_gpus
    from spoke.cli.embedded import EmbeddedServer
    from spoke.protocol.keys import Keys
    from spoke.protocol.url import resolve_pool

    check_imports(imports or [])
    if parse_gpus(gpus) == "auto" and agents > 1:
        raise InvalidRequest(f"--gpus auto with {agents} agents would offer each GPU {agents} times: use --agents 1")
    keys = Keys(resolve_pool(pool))
    directory = (data or default_data()).expanduser().absolute()
    stop = StopSignal()
    with stop.watched(), locked(directory):
        server = EmbeddedServer(directory, port=port or pick_port(), end_with_parent=True)
        everything = Everything(server, keys.pool, stop)
        everything.plan(agents, gpus, tuple(imports or ()))
        try:
            everything.start()
            if not stop.count:
                _welcome(server.url, keys.pool, everything, directory)
                everything.watch()
            say("Stopping…" if everything.children else "Stopping.")
        finally:
            everything.end()
    say(f"All has ended. The data is in {directory}.")


def _welcome(url: str, pool: str, everything: Everything, directory: Path) -> None:
    nodes = count(len(everything.agents), "node")
    say(f"Spoke is up at {url}, pool {pool}: {nodes}. Data and logs are in {directory}. Ctrl-C ends it.")
    say()
    say("In another terminal:")
    extra = "" if pool == "default" else f" SPOKE_POOL={pool}"
    say(f"  export SPOKE_URL={url}{extra}")
    say("  spoke status")


def pick_port() -> int:
    """6379 if it is free, else one that is."""
    import socket

    from spoke.cli.embedded import free_port

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError:
            return free_port()
    return DEFAULT_PORT


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the data directory: two servers on the same files would ruin them. Raises SpokeError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / "up.lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise SpokeError(
            f"the data directory {directory} cannot be used: {error}; choose another with --data"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpokeError(
                f"another `spoke up` uses the data in {directory}: end it, or choose another directory with --data"
            ) from None
        yield


class StopSignal:
    """Counts SIGINT and SIGTERM, and wakes who waits for one."""

    def __init__(self) -> None:
        self.count = 0
        self._woken = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the signals."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        former = {number: signal.signal(number, self._came) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _came(self, number: int, frame: object) -> None:
        self.count += 1
        self._woken.set()

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come; waits so long for one."""
        return self._woken.wait(seconds)


class Everything:
    """The server, the allocator and the agents."""

    def __init__(self, server: EmbeddedServer, pool: str, stop: StopSignal) -> None:
        self._server = server
        self._pool = pool
        self._stop = stop
        self.allocators: list[Child] = []
        self.agents: list[Child] = []
        self._failures: dict[str, int] = {}

    @property
    def children(self) -> list[Child]:
        """The daemons."""
        return [*self.allocators, *self.agents]

    def plan(self, agents: int, gpus: str, imports: tuple[str, ...]) -> None:
        """Decide what is to be started."""
        from spoke.cli.children import Child

        data, place = self._server.data, ("--url", self._server.url, "--pool", self._pool)
        self.allocators = [Child("allocator", ["allocator", *place], data / "allocator.log")]
        shared = [*place, "--gpus", gpus, "--allow-commands", "--log-dir", str(data / "logs" / self._pool)]
        for module in imports:
            shared += ["--import", module]
        names = [f"node-{index}" for index in range(agents)]
        self.agents = [Child(name, ["agent", "--node-id", name, *shared], data / f"agent-{name}.log") for name in names]

    def start(self) -> None:
        """Start all, and wait until the nodes are up, or a signal comes. Raises SpokeError with a child's own words."""
        self._server.start()
        for child in self.children:
            child.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with self._pids_up() as pids_up:
            while not {child.pid for child in self.agents} <= pids_up():
                for child in self.children:
                    if child.ended() is not None:
                        raise SpokeError(f"{child.name} did not start; the end of {child.log}:\n{child.tail()}")
                if time.monotonic() > deadline_s:
                    raise SpokeError(f"the nodes were not up within {START_TIMEOUT_S:g} s: see {self._server.data}")
                if self._stop.wait(0.05):
                    return

    @contextmanager
    def _pids_up(self) -> Iterator[Callable[[], set[int]]]:
        """A way to ask for the pids of the agents whose nodes are up; an earlier run may have left views behind."""
        import orjson

        from spoke.protocol.keys import Keys
        from spoke.protocol.server import connect, explained

        key, client = Keys(self._pool).nodes, connect(self._server.url)

        def ask() -> set[int]:
            with explained(self._server.url):
                found: Any = client.hvals(key)
            lines = map(orjson.loads, found)
            return {int(line["pid"]) for line in lines if line["state"] == "up"}

        try:
            yield ask
        finally:
            client.close()

    def watch(self) -> None:
        """Until a signal comes: start anew what has died. Raises SpokeError if that is of no use."""
        while not self._stop.wait(WATCH_EVERY_S):
            if not self._server.alive:
                raise SpokeError(
                    f"the server has ended: see {self._server.data / 'server.log'}; start again, its data stays"
                )
            for child in self.children:
                if child.ended() is not None:
                    self._restart(child)

    def _restart(self, child: Child) -> None:
        code = child.ended() or 0
        failed = time.monotonic() - child.started_at_s < LIVED_S
        self._failures[child.name] = self._failures.get(child.name, 0) + 1 if failed else 0
        how = f"signal {-code}" if code < 0 else f"code {code}"
        if self._failures[child.name] >= FAILURES_MAX:
            raise SpokeError(f"{child.name} ended again and again ({how}); the end of {child.log}:\n{child.tail()}")
        complain(f"{child.name} (pid {child.pid}) ended with {how}: starting it again")
        if not self._stop.wait(RESTART_AFTER_S):
            child.start()

    def end(self) -> None:
        """End all in order: agents, allocator, server. Bounded in time; another signal hurries."""
        from spoke.cli.children import end_all

        before = self._stop.count

        def hurry() -> bool:
            return self._stop.count > max(before, 1)

        try:
            end_all(self.agents, AGENT_STEPS, hurry)
            end_all(self.allocators, ALLOCATOR_STEPS, hurry)
        finally:
            self._server.stop()
