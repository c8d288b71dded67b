"""A server that comes back without its last writes: what clients and agents saw is gone from the log (I9).

The processes are real, and so is the table of processes that is watched all the time: whatever the log says, no two
actors may live on the same GPU.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.events.audit import Report, verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.daemons import Daemons
from tests.fakes import eventually

pytestmark = pytest.mark.timeout(240)
HERE = Path(__file__).parent
WAIT_S = 60.0
WATCH_S = 0.005
NODES, GPUS = 2, 4
Gpu = tuple[str, str]


class Watch:
    """Looks at all processes again and again: who lives on which GPU, by what stands in their environments."""

    def __init__(self, pool: str) -> None:
        self._mark = f"SPOKE_POOL={pool}".encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rounds = 0
        self.most = 0
        self.doubles: list[tuple[Gpu, set[str]]] = []
        self.errors: list[BaseException] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def holders(self) -> dict[Gpu, set[str]]:
        """The actors that live on each GPU now, by their launches: one that is started again counts as another."""
        found: dict[Gpu, set[str]] = defaultdict(set)
        for path in Path("/proc").iterdir():
            if not path.name.isdecimal():
                continue
            try:
                env = (path / "environ").read_bytes()  # empty for a zombie
            except OSError:
                continue
            if self._mark not in env:
                continue
            said = dict(word.partition("=")[::2] for word in env.decode(errors="replace").split("\0"))
            for gpu in filter(None, said["CUDA_VISIBLE_DEVICES"].split(",")):
                found[said["SPOKE_NODE"], gpu].add(said["SPOKE_LAUNCH"])
        return found

    def _run(self) -> None:
        try:
            while not self._stop.wait(WATCH_S):
                found = self.holders()
                self.doubles += [(gpu, who) for gpu, who in found.items() if len(who) > 1]
                self.most = max(self.most, len(found))
                self.rounds += 1
        except BaseException as error:
            self.errors.append(error)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """As a pool's server runs: everysec. Its file is not rewritten, so that a place in it stays that place."""
    options = ("--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0", "--aof-load-truncated", "yes")
    with EmbeddedServer(tmp_path / "server", options=options) as server:
        yield server


def appended(server: EmbeddedServer) -> Path:
    """The file that the server appends to."""
    (found,) = (server.data / "appendonlydir").glob("*.incr.aof")
    return found


def report(admin: Redis, pool: str) -> Report:
    keys = Keys(pool)
    return verify(EventLog(admin, keys.events, keys.snapshot))


def whole(admin: Redis, pool: str) -> Callable[[], bool]:
    def check() -> bool:
        state = report(admin, pool).state
        up = [node for node in state.nodes.values() if node.phase == "up" and node.confirmed]
        return len(up) == NODES and not state.tickets and all(node.free == node.total for node in up)

    return check


def pids(actors: list[spoke.ActorHandle]) -> list[int]:
    return [actor.call("pid").result(WAIT_S) for actor in actors]


@pytest.mark.parametrize("lost", ["grant and launch", "launch", "release"])
def test_a_server_without_its_last_writes_hands_no_gpu_out_twice(
    server: EmbeddedServer, pool: str, tmp_path: Path, lost: str
) -> None:
    one = spoke.Resources(gpus=1)
    with (
        Daemons(tmp_path, pool, cwd=HERE) as daemons,
        Watch(pool) as watch,
        closing(connect(server.url)) as admin,
    ):
        daemons.allocator(server.url)
        for name in ("n1", "n2"):
            daemons.agent(server.url, name, "--import", "chaos_actors.py", gpus=GPUS, lease_s=60)
        with (
            spoke.Client(server.url, pool=pool, lease_s=60) as keeper,
            spoke.Client(server.url, pool=pool, lease_s=60) as loser,
            spoke.Client(server.url, pool=pool, lease_s=60) as rival,
        ):
            eventually(lambda: report(admin, pool).counts["node.registered"] == NODES, "nodes", WAIT_S)
            kept = keeper.gang_allocate(1, 2, one, timeout=WAIT_S).result(WAIT_S)
            kept_actors = kept.launch("Sleeper").result(WAIT_S)
            kept_pids = pids(kept_actors)
            if lost != "grant and launch":
                gang = loser.gang_allocate(2, 2, one, timeout=WAIT_S).result(WAIT_S)
            if lost == "release":
                pids(gang.launch("Sleeper").result(WAIT_S))
            cut_at = appended(server).stat().st_size  # written, if not synced: a write goes before its answer

            if lost == "grant and launch":
                gang = loser.gang_allocate(2, 2, one, timeout=WAIT_S).result(WAIT_S)
            if lost == "release":
                assert gang.release().result(WAIT_S)
                # what was freed is another's by now
                gang = rival.gang_allocate(2, 2, one, timeout=WAIT_S).result(WAIT_S)
            pids(gang.launch("Sleeper").result(WAIT_S))
            assert len(watch.holders()) == 6
            seen = report(admin, pool).state.last_id

            server.kill()
            with open(appended(server), "r+b") as file:
                assert file.seek(0, 2) > cut_at
                file.truncate(cut_at)
            server.start()
            assert not admin.xrange(Keys(pool).events, min=seen, max=seen), "the log's end is lost"

            # all that the kept gang leaves: what was lost must be dead first, and it is, without anybody's help
            if lost == "launch":  # the log has its grant
                assert gang.release().result(WAIT_S)
            others = rival.gang_allocate(2, 3, one, False, timeout=WAIT_S).result(WAIT_S)
            other_pids = pids(others.launch("Sleeper").result(WAIT_S))
            assert len(set(other_pids)) == 6
            eventually(lambda: len(watch.holders()) == 8, "all GPUs are in use", WAIT_S)
            assert pids(kept_actors) == kept_pids, "what the log knows was left alone"
            assert others.release().result(WAIT_S)
            assert kept.release().result(WAIT_S)
        eventually(whole(admin, pool), "all tickets gone and all GPUs free", WAIT_S)
        eventually(lambda: not watch.holders(), "no actor outlives its ticket", WAIT_S)
        found = report(admin, pool)
    assert watch.errors == []
    assert watch.rounds > 10
    assert watch.most == NODES * GPUS
    assert watch.doubles == [], "two actors lived on one GPU"
    assert found.problems == []
    assert found.counts["server.changed"] == 2, "the first server, and the one that came back"
    assert found.counts["log.regressed"] == 1
    assert found.counts["client.lost"] == found.counts["node.lost"] == 0
