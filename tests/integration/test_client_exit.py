"""What a client leaves behind when its process ends, however it ends: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import FakeAgent, eventually, real_allocator

T_S = 20
BEGIN = """
import os, signal, sys, threading, time
import spoke
client = spoke.Client(sys.argv[1], pool=sys.argv[2], lease_s=1.0)
gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1)).result(20)
kept = client.gang_allocate(1, 1, spoke.Resources(gpus=1), detached=True).result(20)
print("ready", flush=True)
"""


@pytest.fixture
def observer(shared_server: EmbeddedServer, pool: str) -> Iterator[spoke.Client]:
    with (
        real_allocator(shared_server.url, pool),
        FakeAgent(shared_server.url, pool, gpus=4),
        spoke.Client(shared_server.url, pool=pool) as client,
    ):
        yield client


def run(
    observer: spoke.Client, code: str, *, check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code), observer.session.url, observer.pool],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


def only_the_detached_gang_is_left(observer: spoke.Client) -> bool:
    status = observer.status()
    return [ticket.detached for ticket in status.tickets] == [True] and status.gpus_free == 3


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "client.close()",
        "del gang; time.sleep(0)",
        "threading.Thread(target=lambda: (time.sleep(0.2), gang.slots)).start()",
    ],
)
def test_an_orderly_exit_releases_at_once(observer: spoke.Client, ending: str) -> None:
    done = run(observer, ending)
    assert done.stderr == ""
    assert eventually(lambda: only_the_detached_gang_is_left(observer), deadline_s=0.9)  # sooner than the lease


def test_an_exit_with_an_exception_releases_at_once(observer: spoke.Client) -> None:
    done = run(observer, "raise SystemError('as planned')", check=False)
    assert "as planned" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert eventually(lambda: only_the_detached_gang_is_left(observer), deadline_s=0.9)


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_just_vanishes_is_noticed_by_its_lease(observer: spoke.Client, ending: str) -> None:
    run(observer, ending, check=False)
    assert eventually(lambda: only_the_detached_gang_is_left(observer))


def test_a_stopped_process_loses_its_lease_and_is_told(observer: spoke.Client) -> None:
    code = """
    try:
        gang.wait_for_rank(0).result(30)
    except spoke.LeaseLost as error:
        print(error)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code), observer.session.url, observer.pool],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: only_the_detached_gang_is_left(observer))
        os.kill(process.pid, signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
        assert "open a new client" in out
    finally:
        process.kill()
        process.wait()


FORK = """
child = os.fork()
if child == 0:
    outcome = []
    for use in (
        lambda: client.gang_allocate(1, 1).result(5),
        lambda: gang.release().result(5),
        lambda: client.status(),
        lambda: waiting.result(5),
    ):
        try:
            use()
            outcome.append("worked")
        except spoke.ClientClosed as error:
            outcome.append("closed" if "open a client of its own" in str(error) else str(error))
    del gang
    with spoke.Client(sys.argv[1], pool=sys.argv[2]) as own:
        own.gang_allocate(1, 1, spoke.Resources(gpus=1)).result(20)
    client.close()
    print(*outcome, flush=True)
    sys.exit(0)  # runs atexit handlers, unlike a child of multiprocessing
os.waitpid(child, 0)
alive = client.status()
print(sorted(len(ticket.nodes) for ticket in alive.tickets), alive.gpus_free)
time.sleep(1.5)  # longer than the lease
print(client.gang_release(gang.ticket_id).result(20))
"""


def test_a_forked_child_neither_uses_nor_releases_what_its_parent_has(observer: spoke.Client) -> None:
    done = run(observer, "waiting = client.gang_allocate(9, 9, timeout=60)\n" + FORK.strip())
    assert done.stdout.splitlines() == ["ready", "closed closed closed closed", "[0, 1, 1] 1", "True"]
    assert done.stderr == ""


def test_multiprocessing_by_fork_leaves_the_parents_gang_alone(observer: spoke.Client) -> None:
    code = """
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=lambda: None)
    process.start()
    process.join(20)
    print(process.exitcode, client.gang_release(gang.ticket_id).result(20))
    """
    assert run(observer, code).stdout.splitlines()[-1] == "0 True"
