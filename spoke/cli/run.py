"""``spoke run``: a command at every rank of a gang, its output here, its exit code ours, and everything given back.

Whatever happens (an answer, an actor's end, a signal, a reader of ours that left) comes to the main thread through
one queue, so that a signal never interrupts the client in the middle of something.
"""

from __future__ import annotations

import logging
import queue
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spoke.cli.moments import patience, time_option
from spoke.cli.options import Pool, Url
from spoke.cli.output import complain
from spoke.errors import ActorStartFailed, SpokeError

if TYPE_CHECKING:
    from spoke.cli.stream import OutputStream
    from spoke.client.logs.reading import LogReader
    from spoke.client.sync.client import Client
    from spoke.client.sync.gang import Gang
    from spoke.client.tracking import ActorExit

T = TypeVar("T")
LOOK_EVERY_S = 2.0
"""How often a gang that waits in line looks for the reason."""
RELEASE_MORE_S = 30.0
"""How much longer than the grace time a release may take before we stop waiting for it."""
PATIENCE_S = 2.0
"""How long a release may take without a word."""
HURRY_CLOSE_S = 1.0


class Interrupted(SpokeError):
    """A signal came, or the reader of our output is gone; ``number`` is the signal (SIGPIPE for the reader)."""

    code = "interrupted"

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def run(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[JOBFILE] [-- COMMAND...]", help="What to run at every rank; or a YAML or TOML file."),
    ] = None,
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes", "--nnodes", metavar="N|MIN:MAX", help="On how many different nodes; or as many as fit."
        ),
    ] = "1",
    actors_per_node: Annotated[
        int, typer.Option("--actors-per-node", "--nproc-per-node", metavar="N", help="How many processes on each.")
    ] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(metavar="N", help="GPUs for each process; below 1 it is a share of one, like 0.25.")
    ] = 0,
    gpu_memory_per_actor: Annotated[
        str, typer.Option(metavar="SIZE", help="GPU memory for each process, like 10GiB; alone it makes a share.")
    ] = "0",
    gpu_model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Only nodes whose GPUs are of this model (or these).")
    ] = None,
    cpus_per_actor: Annotated[float, typer.Option(metavar="CORES", help="CPU cores for each process.")] = 0.0,
    memory_per_actor: Annotated[str, typer.Option(metavar="SIZE", help="Memory for each process, like 16GiB.")] = "0",
    timeout: Annotated[
        float,
        time_option("How long to wait in line; 0: not at all, -1: for ever.", 300, parser=patience),
    ] = 300.0,
    strict_pack: Annotated[
        bool | None,
        typer.Option(
            "--strict-pack/--no-strict-pack",
            help="Exactly so many on each node (default); or the same number in all, as the strategy says.",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="pack, spread, strict_pack (one node), strict_spread (no two on one node)."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=VALUE", help="Only nodes with this label; given again: any of the values."),
    ] = None,
    where_not: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=VALUE", help="Only nodes without this label.")
    ] = None,
    min_gpu_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Only nodes whose GPUs have so much memory each, like 40GiB.")
    ] = "0",
    near: Annotated[
        str | None, typer.Option(metavar="NODE|TICKET", help="Beside this node, or this ticket's, if it can be.")
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Nobody else on its nodes, as long as it runs.")
    ] = False,
    same: Annotated[
        str | None, typer.Option(metavar="LABEL", help="All its nodes have one value of this label, like rack.")
    ] = None,
    prefer_same: Annotated[
        str | None, typer.Option(metavar="LABEL", help="They have, if they can (default: rack, else block, else zone).")
    ] = None,
    nics_per_actor: Annotated[int, typer.Option(metavar="N", help="RDMA ports that each process has for itself.")] = 0,
    name: Annotated[str, typer.Option(metavar="NAME", help="A name to find it by.")] = "",
    priority: Annotated[int, typer.Option(metavar="N", help="Of two waiting gangs the higher goes first.")] = 0,
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Whom it counts for (default: you).")] = "",
    expected_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it will take, like 90m, as far as you know.")
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="It is stopped after this time, like 2h.")
    ] = None,
    preemptible: Annotated[
        bool, typer.Option("--preemptible", help="Gangs of higher priority may take its place, after a notice.")
    ] = False,
    reservation: Annotated[
        str, typer.Option(metavar="RESERVATION", help="Use the nodes of this reservation, like r-3.")
    ] = "",
    grace: Annotated[float, time_option("From SIGTERM to SIGKILL when it is stopped.", 5)] = 5.0,
    cwd: Annotated[
        str | None, typer.Option(metavar="DIR", help="The working directory on every node (default: this one here).")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Set this in its environment.")
    ] = None,
    restart: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="When a rank fails: never (default), on_failure (it alone), gang (all)."),
    ] = None,
    max_restarts: Annotated[
        int | None, typer.Option(metavar="N", help="How often it is started again (default 3; with --torch 0).")
    ] = None,
    start_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="It must be up by then; for actors and health checks.")
    ] = "0",
    exit_hook: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Run this on the node each time that a rank has ended.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A limit of its processes, like nofile=65536 or memlock=unlimited."),
    ] = None,
    torch: Annotated[
        bool, typer.Option("--torch", help="The command is a Python script, run as torchrun would run it.")
    ] = False,
    module: Annotated[bool, typer.Option("--module", "-m", help="With --torch: a module, as with python -m.")] = False,
    no_python: Annotated[bool, typer.Option("--no-python", help="With --torch: a program, without python.")] = False,
    role: Annotated[str, typer.Option(metavar="NAME", help="With --torch: the workers' ROLE_NAME.")] = "default",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be asked and where it would be now, and end.")
    ] = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Run a command at every rank of a gang, and give everything back.

    Prints every rank's output with the rank before each line. When one rank fails the others are stopped; the exit
    code is that of the first that failed (128 + the signal's number for one that was killed). Ctrl-C releases the
    gang. What RANK, WORLD_SIZE, MASTER_ADDR and the like are, each process finds in its environment.
    """
    import spoke
    from spoke.cli.job.options import job_of
    from spoke.cli.job.plan import plan_of
    from spoke.client.logs.reading import LogReader
    from spoke.protocol.identity import find_key
    from spoke.protocol.url import resolve_pool, resolve_url

    # what the client logs would stand between the ranks' lines
    logging.basicConfig(level=logging.ERROR, format="spoke: %(message)s")
    plan = plan_of(job_of(ctx, command or []))
    if dry_run:
        from spoke.cli.job import dry_run as dry

        raise typer.Exit(dry.dry_run(plan, url, pool))
    inbox = Inbox()
    with inbox.signals():
        client = spoke.Client(url, pool=pool)
        job = Job(client, LogReader(resolve_url(url), resolve_pool(pool), find_key()), inbox)
        try:
            granted = client.gang_allocate(**plan.ask)
            code = job.run(granted, plan.launch, plan.grace_s)
        except Interrupted as stopped:
            code = 128 + stopped.number
        finally:
            client.close(HURRY_CLOSE_S if inbox.signal_count > 1 else 10.0)
    raise typer.Exit(code)


class Inbox:
    """Everything that happens, in one queue."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Future[Any] | int] = queue.SimpleQueue()
        self.signal_count = 0

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and (unless it is ignored, as under nohup) SIGHUP as things that happen."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        former = {number: signal.signal(number, self._signalled) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: object) -> None:
        self.signal_count += 1
        self._queue.put(number)

    def reader_left(self) -> None:
        """Nobody reads our output any more. Callable from any thread."""
        self._queue.put(int(signal.SIGPIPE))

    def expect(self, future: Future[Any]) -> None:
        """Let the future's end be something that happens."""
        future.add_done_callback(self._queue.put)

    def next(self, timeout_s: float | None) -> Future[Any] | None:
        """The next future that is done; None when the time is over. Raises Interrupted."""
        try:
            happened = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(happened, int):
            raise Interrupted(happened)
        return happened

    def wait(
        self, future: Future[T], *, every_s: float | None = None, meanwhile: Callable[[], None] | None = None
    ) -> T:
        """The future's result; raises Interrupted. ``meanwhile`` is called every ``every_s`` seconds."""
        self.expect(future)
        while (happened := self.next(every_s)) is not future:
            if happened is None and meanwhile is not None:
                meanwhile()
        return future.result()


@dataclass
class Job:
    """One run, from the answer to the end."""

    client: Client
    reader: LogReader
    inbox: Inbox
    _reason: str = ""

    def run(self, granted: Future[Gang], launch: Callable[[Gang], Future[Any]], grace_s: float) -> int:
        """Wait for the places, run, release; the exit code. Raises Interrupted and SpokeErrors after the release."""
        from spoke.cli.stream import OutputStream

        try:
            gang = self.inbox.wait(granted, every_s=LOOK_EVERY_S, meanwhile=self._say_why_it_waits)
        except Interrupted:
            if not granted.cancel() and _error_of(granted) is None:  # the grant was faster
                self._release(granted.result(), grace_s)
            raise
        output = OutputStream(self.reader, gang.ticket_id, gang.slots, self.inbox.reader_left)
        not_started: ActorStartFailed | None = None
        try:
            output.start()
            try:
                self._run(gang, launch)
            except ActorStartFailed as error:
                not_started = error
            finally:
                self._release(gang, grace_s)
        finally:
            output.finish()
        failure = first_failure(gang.ticket.exits.copy().values())
        # A rank that fails at once stops the others before they are up: then its end is the news, not theirs.
        if not_started is not None and (failure is None or failure.phase != "exited" or failure.expected):
            raise not_started
        return 0 if failure is None else self._explain(failure, gang, output)

    def _run(self, gang: Gang, launch: Callable[[Gang], Future[Any]]) -> None:
        gang.on_notice(lambda notice: complain(notice.reason))
        self.inbox.wait(launch(gang))
        self.inbox.wait(gang.wait(ranks=range(len(gang))))

    def _release(self, gang: Gang, grace_s: float) -> None:
        """Give everything back, and wait for it within a limit; a second signal ends the waiting."""
        if gang.released or not self.client.is_open:
            return
        released = gang.release()
        with suppress(Interrupted):
            self.inbox.expect(released)
            deadline_s = time.monotonic() + grace_s + RELEASE_MORE_S
            self.inbox.next(PATIENCE_S)
            if not released.done():
                complain(f"ticket {gang.ticket_id} is being given back; Ctrl-C to leave without waiting for it")
            while not released.done() and time.monotonic() < deadline_s:
                self.inbox.next(max(0.0, deadline_s - time.monotonic()))
            if not released.done():
                complain(f"ticket {gang.ticket_id} is still being released: see `spoke tickets {gang.ticket_id}`")
            elif (error := _error_of(released)) is not None:
                complain(str(error))

    def _explain(self, failure: ActorExit, gang: Gang, output: OutputStream) -> int:
        """Say how a rank failed; the exit code that stands for it."""
        if failure.phase == "exited":
            code = 128 + failure.signal if failure.signal else failure.code
            how = signal_name(failure.signal) if failure.signal else f"code {failure.code}"
            how += f": {failure.reason}" if failure.reason else ""
        else:
            code, how = 1, f"{failure.phase}{f': {failure.reason}' if failure.reason else ''}"
        why = f" ({gang.releasing})" if failure.expected and gang.releasing else ""
        complain(f"rank {failure.rank} on {failure.node_id} ended with {how}{why}{output.where(failure.rank)}")
        return code if 0 < code < 256 else 1

    def _say_why_it_waits(self) -> None:
        with suppress(SpokeError):
            for ticket in self.client.status().tickets:
                mine = ticket.client == self.client.client_id and ticket.state == "queued"
                if mine and ticket.reason != self._reason:
                    self._reason = ticket.reason
                    complain(f"{ticket.ticket_id} waits in line: {ticket.reason}")


def first_failure(exits: Iterable[ActorExit]) -> ActorExit | None:
    """The first, of ends in the order of their happening, that is a failure; those that were told to stop come last."""
    failed = [end for end in exits if end.phase != "exited" or end.code or end.signal]
    return min(failed, key=lambda end: end.expected, default=None)


def signal_name(number: int) -> str:
    """A signal by its name, if it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error_of(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError:
        return None
