"""Clients and agents that were away for longer than the server keeps what they would have read; and strangers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from spoke.agent import procfs
from spoke.cli.embedded import EmbeddedServer
from spoke.events.audit import verify
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.events.model import ActorSpec
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.builders import gang, node_spec
from tests.daemons import Daemons, end_all
from tests.fakes import eventually
from tests.integration.agent_harness import pool_at
from tests.integration.test_allocator_log import Asker, allocator
from tests.integration.test_security_wire import run_a_gang

T_S = 40.0
CLIENT = """
import sys, spoke
from spoke.errors import LeaseLost
client = spoke.Client(sys.argv[1], pool=sys.argv[2], lease_s=1)
held = client.gang_allocate(1, 1, spoke.Resources(gpus=1)).result(30)
held.launch_command(["sleep", "600"]).result(30)
waiting = held.wait(600)
print("ready", flush=True)
sys.stdin.readline()
for future in (waiting, client.gang_allocate(1, 1)):
    try:
        print("answer", future.result(30), flush=True)
    except LeaseLost as error:
        print("lost", error, flush=True)
with spoke.Client(sys.argv[1], pool=sys.argv[2]) as again:
    print("again", again.gang_allocate(1, 1).result(30).release().result(30), flush=True)
"""


def trim(redis: Redis, keys: Keys) -> None:
    """Live until the log no longer reaches back to what stands in it now."""
    log, asker = EventLog(redis, keys.events, keys.snapshot), Asker(redis, keys)
    now = log.last_id()
    while order_of(log.first_id()) <= order_of(now):
        for _ in range(20):
            assert isinstance(asker.ask(r.CancelGang(9_999)), p.Message)


@contextlib.contextmanager
def away(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_client_that_comes_back_to_nothing_is_told_so_and_can_begin_anew(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    url, keys = shared_server.url, Keys(pool)
    with (
        Daemons(tmp_path, pool) as daemons,
        allocator(url, pool, snapshot_every=20, keep_events=40),
        contextlib.closing(connect(url)) as redis,
    ):
        daemons.agent(url, "n1")
        command = [sys.executable, "-c", CLIENT, url, pool]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            log = EventLog(redis, keys.events, keys.snapshot)
            with away(client):
                eventually(lambda: not log.recover().tickets, "its ticket is taken back", T_S)
                trim(redis, keys)
                for reply in redis.scan_iter(match=keys.reply("*")):
                    redis.delete(reply)
            said, _ = client.communicate("\n", timeout=60)
        finally:
            end_all([client])  # type: ignore[list-item]
        lines = said.splitlines()
        assert [line.split()[0] for line in lines] == ["lost", "lost", "again"], said
        assert verify(log).problems == []


def test_a_client_whose_replies_were_trimmed_within_its_lease_gives_back_what_it_had(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    url, keys = shared_server.url, Keys(pool)
    with (
        Daemons(tmp_path, pool) as daemons,
        allocator(url, pool),
        contextlib.closing(connect(url)) as redis,
    ):
        daemons.agent(url, "n1")
        command = [sys.executable, "-c", CLIENT.replace("lease_s=1", "lease_s=3600"), url, pool]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            with away(client):
                (stream,) = redis.scan_iter(match=keys.reply("*"))
                pipe = redis.pipeline(transaction=False)
                for _ in range(p.REPLIES_KEPT + 500):
                    pipe.xadd(stream, {"9999": p.encode_message(p.Done())}, maxlen=p.REPLIES_KEPT, approximate=True)
                pipe.execute()
            log = EventLog(redis, keys.events, keys.snapshot)
            eventually(lambda: not log.recover().tickets, "its ticket is given back long before its lease ends", T_S)
            said, _ = client.communicate("\n", timeout=60)
        finally:
            end_all([client])  # type: ignore[list-item]
        lines = said.splitlines()
        assert [line.split()[0] for line in lines] == ["lost", "lost", "again"], said
        assert "were trimmed" in lines[0]
        assert verify(log).problems == []


def test_an_agent_that_comes_back_to_nothing_registers_anew(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    url, keys = shared_server.url, Keys(pool)
    with (
        Daemons(tmp_path, pool) as daemons,
        allocator(url, pool, snapshot_every=20, keep_events=40),
        contextlib.closing(connect(url)) as redis,
    ):
        agent = daemons.agent(url, "n1", lease_s=1.0)
        run_a_gang(daemons, url, pool)
        log = EventLog(redis, keys.events, keys.snapshot)
        with away(agent):
            eventually(lambda: log.recover().nodes["n1"].phase == "lost", "its lease runs out", T_S)
            trim(redis, keys)
            redis.delete(keys.node("n1"))
        eventually(lambda: log.recover().nodes["n1"].phase == "up", "it registers", T_S)
        run_a_gang(daemons, url, pool)
        assert verify(log).problems == []


def test_an_agent_whose_orders_were_trimmed_within_its_lease_kills_what_runs_and_registers_anew(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    with pool_at(shared_server.url, pool, tmp_path, lease_ms=120_000) as played:
        agent = played.join()
        pid = played.report(played.start(ActorSpec(argv=("sleep", "600"))), r.ReportStarted).pid
        before = played.incarnation["n0"]
        with away(agent):
            key, pipe = played.keys.node("n0"), played.client.pipeline(transaction=False)
            fields = o.encode_order(o.Delivery(before, o.CloseTicket("t-other", 1.0)))
            for _ in range(o.ORDERS_KEPT + 500):
                pipe.xadd(key, fields, maxlen=o.ORDERS_KEPT, approximate=True)  # type: ignore[arg-type]
            pipe.execute()
        eventually(lambda: played.pump()["n0"] != before, "it registers anew", T_S)
        assert not procfs.is_alive(pid)
        assert played.agent_log().read_text().count("orders to it were trimmed") == 1
        again = played.start(ActorSpec(argv=("sleep", "600")))
        assert played.report(again, r.ReportStarted).pid


def test_a_node_that_is_not_there_gets_no_stream_and_a_refused_one_gets_one_for_a_while(
    shared_server: EmbeddedServer, pool: str
) -> None:
    keys = Keys(pool)
    with contextlib.closing(connect(shared_server.url)) as redis, allocator(shared_server.url, pool):

        def send(node_id: str, request: r.Request) -> None:
            asked = r.Envelope(request, node_id=node_id, incarnation="i")
            redis.xadd(keys.requests, r.encode_request(asked))  # type: ignore[arg-type]

        asker = Asker(redis, keys)
        send("ghost", r.ReportStarted("t-1", 0, "1-0", 7, "tcp://127.0.0.1:1"))
        send("ghost", r.ReportExited("t-1", 0, "1-0", 0, 0))
        redis.xadd(keys.requests, {"type": "actor.exited", "v": "1", "node_id": "ghost", "incarnation": "i"})
        send("greedy", r.RegisterNode(node_spec("greedy"), 1))
        asker.ask(r.AllocateGang(gang(), 0))
        assert not redis.exists(keys.node("ghost"))
        assert 0 < redis.ttl(keys.node("greedy")) <= 3_600  # type: ignore[operator]
        send("greedy", r.RegisterNode(node_spec("greedy"), 60_000))
        assert isinstance(asker.ask(r.AllocateGang(gang(), 10_000)), p.Granted)
        assert redis.ttl(keys.node("greedy")) == -1, "now it is known"
