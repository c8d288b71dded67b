"""Who dies with whom: actors and all their processes, keepers, agents, leases. Nothing may outlive its due."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoke.agent import procfs
from spoke.cli.embedded import EmbeddedServer
from spoke.events.model import ActorSpec
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from spoke.protocol.keys import node_lease
from tests.integration.agent_harness import (
    WAIT_S,
    Pool,
    alive,
    command,
    kill,
    pid_in,
    pool_at,
    shell,
    wait_until,
)


@pytest.fixture
def allocator(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Pool]:
    with pool_at(shared_server.url, pool, tmp_path) as played:
        yield played


def _family(tmp: Path, *, heeds_term: bool = True) -> tuple[str, list[Path]]:
    """A script: the root, a child in its group, a daemon in a session of its own, and one that hides its mark too."""
    names = [tmp / name for name in ("root", "child", "daemon", "hidden")]
    ignore = "" if heeds_term else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script = (
        "import os, signal, subprocess, sys, time\n"
        f"{ignore}"
        "def note(path, pid): open(path + '~', 'w').write(str(pid)); os.rename(path + '~', path)\n"
        f"note({str(names[0])!r}, os.getpid())\n"
        f"note({str(names[1])!r}, subprocess.Popen(['sleep', '100']).pid)\n"
        "def daemon(path, env):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            note(path, os.getpid())\n"
        "            os.execve('/bin/sleep', ['sleep', '100'], env)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        f"daemon({str(names[2])!r}, dict(os.environ))\n"
        f"daemon({str(names[3])!r}, {{}})\n"
        f"while not all(map(os.path.exists, {[str(name) for name in names]!r})): time.sleep(0.01)\n"
    )
    return script, names


def _gone(pids: list[int]) -> None:
    wait_until(lambda: not [pid for pid in pids if alive(pid)], f"{pids} end")


# --- actors --------------------------------------------------------------------------------------------------------


def test_exit_codes_and_signals_are_told(allocator: Pool) -> None:
    allocator.join()
    coded = allocator.start(shell("exit 3"))
    assert allocator.report(coded, r.ReportExited).code == 3
    killed = allocator.start(shell("kill -SEGV $$"), rank=1)
    report = allocator.report(killed, r.ReportExited)
    assert (report.code, report.signal) == (-1, signal.SIGSEGV)


def test_kill_9_of_an_actor_is_told_at_once(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(type_name="Plain"))
    kill(allocator.report(start, r.ReportStarted).pid)
    assert allocator.report(start, r.ReportExited, timeout_s=4.0).signal == signal.SIGKILL


def test_an_actor_has_ended_only_when_all_its_processes_have(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    script, names = _family(tmp_path)
    start = allocator.start(command(script + "time.sleep(100)\n"))
    pids = [pid_in(name) for name in names]
    allocator.stop(start)
    report = allocator.report(start, r.ReportExited, timeout_s=4.0)  # less than the grace: nobody ignored SIGTERM
    assert report.signal == signal.SIGTERM
    assert not [pid for pid in pids if alive(pid)]


def test_what_an_actor_leaves_behind_is_killed_before_its_end_is_told(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    script, names = _family(tmp_path)
    start = allocator.start(command(script + "sys.exit(5)\n"))
    report = allocator.report(start, r.ReportExited)
    assert (report.code, report.signal) == (5, 0)
    assert not [pid for pid in map(pid_in, names) if alive(pid)]


def test_who_ignores_sigterm_is_killed_after_the_grace(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    script, names = _family(tmp_path, heeds_term=False)
    start = allocator.start(command(script + "while True: time.sleep(0.01)\n"))
    pids = [pid_in(name) for name in names]
    since = time.monotonic()
    allocator.stop(start, grace_s=0.5)
    assert allocator.report(start, r.ReportExited).signal == signal.SIGKILL
    assert time.monotonic() - since >= 0.5
    assert not [pid for pid in pids if alive(pid)]


def test_a_child_may_use_the_rest_of_the_grace_after_its_parent(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    saved = tmp_path / "saved"
    child = (
        "import os, signal, sys, time\n"
        f"def save(*_): time.sleep(0.5); open({str(saved)!r}, 'w').write('x'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    start = allocator.start(command(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"))
    pid_in(tmp_path / "pid")
    allocator.stop(start, grace_s=10.0)
    allocator.report(start, r.ReportExited)
    assert saved.exists()


def test_a_stopped_process_is_still_ended(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(shell("kill -STOP $$"))
    pid = allocator.report(start, r.ReportStarted).pid
    wait_until(lambda: (procfs.stat_of(pid) or [""])[0] == "T", "the actor stops itself")
    allocator.stop(start)
    assert allocator.report(start, r.ReportExited, timeout_s=4.0).signal == signal.SIGTERM


def test_other_actors_daemons_live_on(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    script, names = _family(tmp_path)
    staying = allocator.start(command(script + "time.sleep(100)\n"))
    pids = [pid_in(name) for name in names]
    other = allocator.start(shell("exit 0"), rank=1)
    allocator.report(other, r.ReportExited)
    # The one that hid its mark may be anybody's, so it may be gone; what carries the mark is not touched.
    assert all(alive(pid) for pid in pids[:3])
    allocator.stop(staying)
    allocator.report(staying, r.ReportExited)
    _gone(pids)


def test_close_ticket_ends_all_its_actors_and_no_others(allocator: Pool) -> None:
    allocator.join()
    mine = [allocator.start(shell("sleep 100"), rank=rank) for rank in range(4)]
    other = allocator.start(shell("sleep 100"), ticket="t2")
    for start in (*mine, other):
        allocator.report(start, r.ReportStarted)
    allocator.order(o.CloseTicket("t1", 5.0))
    for start in mine:
        assert allocator.report(start, r.ReportExited).signal == signal.SIGTERM
    assert [type(report) for report in allocator.reports(other)] == [r.ReportStarted]


def test_a_hundred_short_actors_each_get_one_end(allocator: Pool) -> None:
    allocator.join()
    starts = [allocator.start(shell("exit 0"), rank=rank) for rank in range(100)]
    for start in starts:
        allocator.report(start, r.ReportExited)
    allocator.pump()
    assert all([type(x) for x in allocator.reports(s)] == [r.ReportStarted, r.ReportExited] for s in starts)


# --- agents and keepers --------------------------------------------------------------------------------------------


def test_kill_9_of_the_agent_leaves_no_process(allocator: Pool, tmp_path: Path) -> None:
    agent = allocator.join()
    script, names = _family(tmp_path, heeds_term=False)
    allocator.start(command(script + "while True: time.sleep(0.01)\n"))
    plain = allocator.start(ActorSpec(type_name="Plain"), rank=1)
    pids = [*map(pid_in, names), allocator.report(plain, r.ReportStarted).pid, allocator.keeper()]
    agent.kill()
    agent.wait()
    _gone(pids)
    assert allocator.processes() == []


def test_kill_9_of_the_keeper_ends_its_actors_and_the_agent_goes_on(allocator: Pool, tmp_path: Path) -> None:
    agent = allocator.join()
    script, names = _family(tmp_path, heeds_term=False)
    start = allocator.start(command(script + "while True: time.sleep(0.01)\n"))
    pids = [pid_in(name) for name in names]
    keeper = allocator.keeper()
    kill(keeper)
    report = allocator.report(start, r.ReportExited)
    assert (report.code, report.signal) == (-1, signal.SIGKILL)
    assert not [pid for pid in pids if alive(pid)]
    after = allocator.start(ActorSpec(type_name="Plain"), rank=1)
    allocator.report(after, r.ReportStarted)
    assert allocator.keeper() != keeper
    assert agent.poll() is None


def test_a_keeper_that_hangs_is_replaced_when_the_lease_runs_out(
    server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    with pool_at(server.url, pool, tmp_path, lease_ms=1500) as allocator:
        allocator.join()
        start = allocator.start(shell("sleep 100"))
        pid = allocator.report(start, r.ReportStarted).pid
        os.kill(allocator.keeper(), signal.SIGSTOP)
        server.pause()
        try:
            _gone([pid])
        finally:
            server.resume()


def test_an_agent_that_hangs_is_fenced_by_its_keeper(allocator: Pool) -> None:
    allocator.lease_ms = 1500
    agent = allocator.join()
    start = allocator.start(shell("sleep 100"))
    pid = allocator.report(start, r.ReportStarted).pid
    holder = node_lease("n0", allocator.incarnation["n0"])
    agent.send_signal(signal.SIGSTOP)
    _gone([pid])
    assert allocator.lease_left_ms(holder) > 0
    before = allocator.incarnation["n0"]
    wait_until(lambda: allocator.lease_left_ms(holder) < 0, "the lease runs out")
    agent.send_signal(signal.SIGCONT)
    wait_until(lambda: allocator.pump()["n0"] != before, "a new incarnation registers")


def test_a_lost_lease_kills_everything_and_the_agent_joins_again(allocator: Pool) -> None:
    allocator.lease_ms = 3000
    allocator.join()
    start = allocator.start(shell("sleep 100"))
    pid = allocator.report(start, r.ReportStarted).pid
    before = allocator.incarnation["n0"]
    allocator.client.zrem(allocator.keys.leases, node_lease("n0", before))
    _gone([pid])
    wait_until(lambda: allocator.pump()["n0"] != before, "a new incarnation registers")
    again = allocator.start(shell("exit 0"))
    allocator.report(again, r.ReportExited)
    assert len(allocator.reports(start)) == 1  # void: the pool counts what was lost itself


def test_an_agent_cut_off_kills_its_actors_before_the_lease_runs_out(
    server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    with pool_at(server.url, pool, tmp_path, lease_ms=2000) as allocator:
        allocator.join()
        deaf = tmp_path / "deaf"
        start = allocator.start(shell(f"trap '' TERM; touch {deaf}; while :; do sleep 0.01; done"))
        wait_until(deaf.exists, "the actor hears no SIGTERM any more")
        pid = allocator.report(start, r.ReportStarted).pid
        holder = node_lease("n0", allocator.incarnation["n0"])
        before = allocator.incarnation["n0"]
        left_ms, since = allocator.lease_left_ms(holder), time.monotonic()
        server.pause()
        try:
            _gone([pid])
            gone_after_ms = (time.monotonic() - since) * 1000
        finally:
            server.resume()
        # A renewal that was on its way when the server stopped may have prolonged the lease, but not what left_ms says.
        assert gone_after_ms < left_ms + 2000 / 3
        assert gone_after_ms < 2000
        wait_until(lambda: allocator.pump()["n0"] != before, "a new incarnation registers")
        again = allocator.start(shell("exit 0"))
        allocator.report(again, r.ReportExited)


def test_a_short_outage_of_the_server_costs_nothing(server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    with pool_at(server.url, pool, tmp_path, lease_ms=10_000) as allocator:
        agent = allocator.join()
        start = allocator.start(shell("sleep 1; exit 4"))
        allocator.report(start, r.ReportStarted)
        server.restart()
        assert allocator.report(start, r.ReportExited).code == 4
        again = allocator.start(shell("exit 0"), rank=1)
        allocator.report(again, r.ReportExited)
        assert agent.poll() is None
        assert allocator.agent_log().read_text().count("trying again until it is") <= 1


def test_what_an_earlier_agent_left_is_killed_before_the_node_registers(allocator: Pool, tmp_path: Path) -> None:
    stray = subprocess.Popen(["sleep", "100"], env={"SPOKE_LAUNCH": f"{allocator.mark()}old-1"}, start_new_session=True)
    other = subprocess.Popen(
        ["sleep", "100"], env={"SPOKE_LAUNCH": f"{allocator.mark('n1')}old-1"}, start_new_session=True
    )
    try:
        allocator.welcoming = False
        allocator.start_agent()
        assert stray.wait(WAIT_S) == -signal.SIGKILL
        wait_until(lambda: allocator.pump() or allocator.requests, "the node registers")
        assert other.poll() is None
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()


def test_agent_and_keeper_killed_together_leave_what_the_next_agent_sweeps(allocator: Pool, tmp_path: Path) -> None:
    agent = allocator.join()
    script, names = _family(tmp_path)
    allocator.start(command(script + "time.sleep(100)\n"))
    daemon = [pid_in(name) for name in names][2]
    os.kill(agent.pid, signal.SIGSTOP)  # so that it cannot clear up behind its keeper
    kill(allocator.keeper())
    agent.kill()
    agent.wait()
    allocator.join()
    assert not alive(daemon)
    for pid in map(pid_in, names):  # the hidden one has neither mark nor keeper: nobody can know it
        procfs.send_signal(pid, signal.SIGKILL)


def test_a_second_agent_of_the_same_node_is_refused(allocator: Pool) -> None:
    first = allocator.join()
    second = allocator.start_agent()
    assert second.wait(WAIT_S) == 1
    text = allocator.agent_log().read_text()
    assert "node_taken" in text
    assert f"pid {first.pid}" in text
    assert first.poll() is None
    allocator.join("n1")  # another id is fine


def test_an_agent_restarted_at_once_waits_for_the_last_ones_keeper(allocator: Pool) -> None:
    agent = allocator.join()
    start = allocator.start(shell("sleep 100"))
    allocator.report(start, r.ReportStarted)
    agent.kill()
    agent.wait()
    allocator.join()
    assert [procfs.mark_of(pid) for pid in allocator.processes()] == [f"{allocator.mark()}keeper"]


# --- the end -------------------------------------------------------------------------------------------------------


def test_sigterm_stops_the_actors_tells_it_and_leaves(allocator: Pool, tmp_path: Path) -> None:
    agent = allocator.join()
    start = allocator.start(ActorSpec(type_name="Plain"))
    allocator.report(start, r.ReportStarted)
    agent.terminate()
    assert agent.wait(5.0) == 0
    assert allocator.report(start, r.ReportExited).code == 0
    assert isinstance(allocator.requests[-1].request, r.LeaveNode)
    assert allocator.processes() == []


def test_a_second_sigterm_does_without_the_grace(allocator: Pool) -> None:
    agent = allocator.join()
    deaf = allocator.tmp / "deaf"
    start = allocator.start(shell(f"trap '' TERM; touch {deaf}; while :; do sleep 0.01; done"), grace_s=60.0)
    allocator.report(start, r.ReportStarted)
    wait_until(deaf.exists, "the actor hears no SIGTERM any more")
    agent.terminate()
    wait_until(lambda: "told to stop" in allocator.agent_log().read_text(), "the agent has heard the first SIGTERM")
    refused = allocator.start(shell("true"), rank=1)
    assert "is stopping" in allocator.report(refused, r.ReportStartFailed).reason
    agent.terminate()
    assert agent.wait(5.0) == 0
    assert allocator.report(start, r.ReportExited).signal == signal.SIGKILL


def test_an_agent_ends_in_time_though_the_server_is_gone(server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    with pool_at(server.url, pool, tmp_path) as allocator:
        agent = allocator.join()
        start = allocator.start(shell("sleep 100"))
        pid = allocator.report(start, r.ReportStarted).pid
        server.kill()
        agent.terminate()
        assert agent.wait(15.0) == 0
        assert not alive(pid)
        server.start()


# --- joining -------------------------------------------------------------------------------------------------------


def _says(allocator: Pool, agent: subprocess.Popen[bytes]) -> str:
    assert agent.wait(WAIT_S) == 1
    return allocator.agent_log().read_text()


def test_no_server_is_told_in_time(tmp_path: Path, pool: str, shared_server: EmbeddedServer) -> None:
    with pool_at(shared_server.url, pool, tmp_path) as allocator:
        text = _says(allocator, allocator.start_agent(url="redis://127.0.0.1:9", server_wait_s=1))
        assert "server_unreachable: no server answers at redis://127.0.0.1:9" in text
        assert "tried for 1 s: --wait-for-server" in text
        assert text.count("trying again for up to 1 s") == 1


def test_a_refused_registration_ends_the_agent(allocator: Pool) -> None:
    allocator.welcoming = False
    agent = allocator.start_agent()
    wait_until(lambda: allocator.pump() or allocator.requests, "it asks to register")
    allocator.incarnation["n0"] = allocator.requests[0].incarnation
    allocator.order(o.Reject("invalid", "a lease of 1 ms was asked for"))
    assert "node_refused: the pool refused this node: a lease of 1 ms" in _says(allocator, agent)


def test_no_driver_is_told(allocator: Pool) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    assert "no_gpu_driver: --gpus auto asks NVML" in _says(allocator, allocator.start_agent(gpus="auto"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus": -1}, "gpus must be"),
        ({"gpus": 10**9}, "gpus must be"),
        ({"node_id": ".."}, "not a usable name"),
        ({"pool": "bad\x01name"}, "not a usable name"),
        ({"ports": 10**6}, "smaller --ports"),
        ({"cpus": -2}, "cpus must be"),
    ],
)
def test_bad_settings_are_told(allocator: Pool, settings: dict[str, object], said: str) -> None:
    assert said in _says(allocator, allocator.start_agent(**settings))


def test_an_agent_waits_for_an_allocator(allocator: Pool) -> None:
    allocator.welcoming = False
    agent = allocator.start_agent()
    wait_until(lambda: (allocator.pump() or True) and len(allocator.requests) > 1, "it asks again", timeout_s=15.0)
    assert len({asked.incarnation for asked in allocator.requests}) == 1
    assert "no allocator has answered yet" in allocator.agent_log().read_text()
    agent.terminate()
    assert agent.wait(5.0) == 0
