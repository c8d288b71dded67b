"""Actors that are looked after, on real agents: restarts, health, time limits, exit hooks, limits of the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import ActorStartFailed, ActorUnreachable
from spoke.transport.mailbox import Push
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import Pool, alive, pool_at

T_S = 30
ACTORS = str(Path(__file__).with_name("supervised_actors.py"))
QUICK = {"backoff_s": 0.05, "backoff_max_s": 0.1}
ALONE = spoke.Restart("on_failure", 2, **QUICK)
GANG = spoke.Restart("gang", 2, **QUICK)


@pytest.fixture
def agents(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Pool]:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        for node in ("n0", "n1"):
            agents.start_agent(node, imports=[ACTORS], lease_ms=3_000)
        yield agents


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str, agents: Pool) -> Iterator[spoke.Client]:
    with spoke.Client(shared_server.url, pool=pool) as client:
        eventually(lambda: client.status().gpus_free == 8, "both nodes", T_S)
        yield client


def on(client: spoke.Client, nodes: int = 1, on_failure: str = "report") -> spoke.Gang:
    return client.gang_allocate(nodes, 1, spoke.Resources(gpus=1), timeout=T_S, on_failure=on_failure).result(T_S)  # type: ignore[arg-type]


def launch(gang: spoke.Gang, **care: object) -> list[spoke.ActorHandle]:
    return gang.launch("Fragile", supervision=spoke.Supervision(**care)).result(T_S)  # type: ignore[arg-type]


def up_again(handle: spoke.ActorHandle, restarts: int) -> list[int]:
    eventually(lambda: handle.phase == "running" and handle.restarts == restarts, f"restart {restarts}", T_S)
    found: list[int] = handle.call("where").result(T_S)
    assert found == [handle.pid, restarts, restarts]
    return found


def test_calls_go_to_the_new_process_of_an_actor_that_was_started_again(client: spoke.Client) -> None:
    gang = on(client, on_failure="release")
    (handle,) = launch(gang, restart=ALONE)
    before = handle.call("where").result(T_S)
    with pytest.raises(ActorUnreachable):
        handle.call("die").result(T_S)
    after = up_again(handle, 1)
    assert after[0] != before[0]
    assert "is started again (restart 1)" in gang.notices[-1].reason
    with pytest.raises(ActorUnreachable):
        handle.call("exit", 3).result(T_S)
    up_again(handle, 2)
    with pytest.raises(ActorUnreachable):
        handle.call("exit", 4).result(T_S)
    end = handle.wait(T_S).result(T_S)
    assert (end.phase, end.code) == ("exited", 4)
    eventually(lambda: gang.released, "a failure at last", T_S)


def pushed_to(handle: spoke.ActorHandle, *mailboxes: spoke.Mailbox) -> list[list[object]]:
    """What an actor pushes until all these mailboxes are open there, and the last word that it pushes then."""
    eventually(lambda: handle.call("push", "a try").result(T_S) == len(mailboxes), "the mailboxes to be open", T_S)
    handle.call("push", "the last").result(T_S)
    found = []
    for mailbox in mailboxes:
        values: list[object] = []
        while "the last" not in values:
            push = mailbox.get(T_S)
            if push.rank == handle.rank and push.value != "a try":
                values.append(push.value)
        found.append(values)
    return found


def test_mailboxes_outlive_kill_9_of_their_actor(client: spoke.Client) -> None:
    gang = on(client, 2)
    first, second = launch(gang, restart=ALONE)
    with second.mailbox() as alone, gang.mailbox() as whole:
        assert second.call("push", "before").result(T_S) == 2
        os.kill(second.pid, signal.SIGKILL)
        up_again(second, 1)
        assert pushed_to(second, alone, whole) == [["before", "the last"]] * 2
        first.call("push", "of the other").result(T_S)
        assert whole.get(T_S) == Push(0, "of the other")
        os.kill(second.pid, signal.SIGKILL)
        with pytest.raises(spoke.WaitTimeout):
            alone.get(0.01)
        up_again(second, 2)
        assert pushed_to(second, alone, whole) == [["the last"]] * 2
        with pytest.raises(ActorUnreachable):
            second.call("exit", 4).result(T_S)
        with pytest.raises(ActorUnreachable, match="have all ended"):
            alone.get(T_S)
        first.call("push", "the others go on").result(T_S)
        assert whole.get(T_S) == Push(0, "the others go on")
    eventually(lambda: not renewing(), "the end of what waited for news", T_S)


def test_mailboxes_outlive_a_restart_of_the_gang_and_end_with_it(client: spoke.Client) -> None:
    gang = on(client, 2)
    handles = launch(gang, restart=GANG)
    with gang.mailbox() as whole:
        os.kill(handles[1].pid, signal.SIGKILL)
        for handle in handles:
            up_again(handle, 1)
            assert pushed_to(handle, whole) == [["the last"]]
        got: list[BaseException] = []

        def wait() -> None:
            try:
                whole.get(T_S)
            except ActorUnreachable as error:
                got.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        gang.release().result(T_S)
        waiting.join(T_S)
        assert len(got) == 1
    eventually(lambda: not renewing(), "the end of what waited for news", T_S)


def test_a_mailbox_that_is_closed_or_forgotten_while_it_waits_for_a_restart_leaves_no_thread(
    client: spoke.Client,
) -> None:
    (handle,) = launch(on(client), restart=spoke.Restart("on_failure", 2, backoff_s=30.0, backoff_max_s=30.0))
    mailbox, forgotten = handle.mailbox(), handle.mailbox()
    os.kill(handle.pid, signal.SIGKILL)
    eventually(lambda: handle.phase == "restarting", "its restart", T_S)
    for waiting in (mailbox, forgotten):
        with pytest.raises(spoke.WaitTimeout):
            waiting.get(0.01)
    assert len(renewing()) == 2
    mailbox.close()
    with pytest.raises(spoke.ClientClosed):
        mailbox.get(T_S)
    del mailbox, forgotten, waiting
    eventually(lambda: not renewing(), "the threads' end", T_S)


def test_who_waits_at_a_mailbox_for_a_restart_hears_of_the_clients_end(client: spoke.Client) -> None:
    (handle,) = launch(on(client), restart=spoke.Restart("on_failure", 2, backoff_s=30.0, backoff_max_s=30.0))
    with handle.mailbox() as mailbox, ThreadPoolExecutor(1) as threads:
        os.kill(handle.pid, signal.SIGKILL)
        eventually(lambda: handle.phase == "restarting", "its restart", T_S)
        waiting = threads.submit(mailbox.get, T_S)
        client.close()
        assert type(waiting.exception(T_S)) is ActorUnreachable


def renewing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("spoke-mailbox")]


def test_while_it_waits_calls_fail_and_say_why(client: spoke.Client) -> None:
    (handle,) = launch(on(client), restart=spoke.Restart("on_failure", 2, backoff_s=20.0))
    with pytest.raises(ActorUnreachable):
        handle.call("die").result(T_S)
    eventually(lambda: handle.phase == "restarting", "its restart", T_S)
    with pytest.raises(ActorUnreachable, match=r"is being started again \(restart 1\)"):
        handle.call("where").result(T_S)
    gang = handle.gang
    assert gang.release().result(T_S) is True, "at once, though it waits for its restart"


def test_kill_9_of_the_agent_while_an_actor_waits_for_its_restart(client: spoke.Client, agents: Pool) -> None:
    gang = on(client)
    (handle,) = launch(gang, restart=spoke.Restart("on_failure", 2, backoff_s=30.0, backoff_max_s=30.0))
    with pytest.raises(ActorUnreachable):
        handle.call("die").result(T_S)
    eventually(lambda: handle.phase == "restarting", "its restart", T_S)
    agents.agents[int(handle.node_id[1:])].kill()
    eventually(lambda: handle.phase == "lost", "the end of the lease", T_S)
    assert gang.release().result(T_S) is True
    agents.start_agent(handle.node_id, imports=[ACTORS])
    eventually(lambda: client.status().gpus_free == 8, "all GPUs", T_S)


def test_a_gang_is_started_again_as_a_whole_and_its_members_find_each_other(client: spoke.Client) -> None:
    gang = on(client, 2, on_failure="release")
    handles = launch(gang, restart=GANG)
    slots, before = gang.slots, [handle.call("where").result(T_S)[0] for handle in handles]
    assert handles[0].call("peer_pid", 1).result(T_S) == before[1]
    with pytest.raises(ActorUnreachable):
        handles[1].call("die").result(T_S)
    after = [up_again(handle, 1)[0] for handle in handles]
    assert not set(before) & set(after)
    assert not any(alive(pid) for pid in before)
    assert gang.slots == slots
    assert handles[0].call("peer_pid", 1).result(T_S) == after[1]
    assert "all 2 members are started again" in gang.notices[-1].reason
    handles[0].tell("exit", 0)  # which is no failure
    eventually(lambda: handles[0].phase == "exited", "its end", T_S)
    with pytest.raises(ActorUnreachable):
        handles[1].call("exit", 1).result(T_S)
    for handle in handles:
        up_again(handle, 2)
    with pytest.raises(ActorUnreachable):
        handles[1].call("exit", 9).result(T_S)
    eventually(lambda: gang.released, "the last failure", T_S)
    assert gang.exits[1].code == 9


def test_a_start_that_fails_is_tried_again_and_the_launch_is_answered_when_it_is_up(client: spoke.Client) -> None:
    gang = on(client)
    care = spoke.Supervision(restart=ALONE)
    (handle,) = gang.launch("Fragile", {"fails_at": 0}, supervision=care).result(T_S)
    assert up_again(handle, 1)[1] == 1
    assert "does not come up this time" in gang.notices[-1].reason


@pytest.mark.parametrize("how", ["hang", "be_sick"])
def test_an_actor_that_hangs_is_killed_and_started_again(client: spoke.Client, how: str) -> None:
    health = spoke.HealthCheck(interval_s=0.1, timeout_s=0.5, failures=2)
    (handle,) = launch(on(client), restart=ALONE, health=health)
    pid = handle.call("where").result(T_S)[0]
    handle.tell(how)
    up_again(handle, 1)
    assert not alive(pid)
    notice = handle.gang.notices[-1].reason
    assert "2 health checks in a row failed" in notice
    assert how == "hang" or "healthy() returned False" in notice


def test_a_busy_actor_is_not_taken_for_one_that_hangs(client: spoke.Client) -> None:
    health = spoke.HealthCheck(interval_s=0.05, timeout_s=2.0, failures=1)
    (handle,) = launch(on(client), health=health)
    for _ in range(20):  # all its workers
        handle.tell("block")
    with pytest.raises(TimeoutError):
        handle.wait().result(1.0)


def test_a_command_is_up_when_its_health_command_says_so_and_killed_when_it_does_not(
    client: spoke.Client, tmp_path: Path
) -> None:
    sign, log = tmp_path / "sign", tmp_path / "log"
    script = f"sleep 0.3; touch {sign}; exec sleep 600"
    gang = on(client)
    care = spoke.Supervision(
        health=spoke.HealthCheck(0.05, 1.0, 2, ["test", "-e", str(sign)]),
        exit_hook=spoke.ExitHook(
            ["sh", "-c", f'echo "$RANK $SPOKE_EXIT_CODE $SPOKE_EXIT_SIGNAL $SPOKE_EXIT_REASON" > {log}']
        ),
        start_timeout_s=20.0,
    )
    (handle,) = gang.launch_command(["sh", "-c", script], supervision=care).result(T_S)
    assert sign.exists()
    sign.unlink()
    end = handle.wait(T_S).result(T_S)
    assert (end.signal, end.reason) == (signal.SIGTERM, "2 health checks in a row failed: it exited with code 1")
    assert log.read_text().strip() == f"0 -1 {signal.SIGTERM:d} {end.reason}"


def test_what_is_not_up_in_its_own_time_has_failed(client: spoke.Client) -> None:
    care = spoke.Supervision(start_timeout_s=0.3, health=spoke.HealthCheck(0.05, 1.0, 1, ["false"]))
    with pytest.raises(ActorStartFailed, match=r"not up within the time limit of 0\.3 s"):
        on(client).launch_command(["sleep", "600"], supervision=care).result(T_S)


def test_an_exit_hook_has_its_time_and_the_gpus_stay_with_it(client: spoke.Client, tmp_path: Path) -> None:
    began = tmp_path / "began"
    hook = spoke.ExitHook(["sh", "-c", f"echo $$ > {began}; exec sleep 600"], timeout_s=2.5)
    gang = on(client)
    (handle,) = gang.launch_command(["true"], supervision=spoke.Supervision(exit_hook=hook)).result(T_S)
    eventually(began.exists, "the hook", T_S)
    assert handle.exit is None
    released = gang.release()
    assert client.status().gpus_free == 7
    assert released.result(T_S) is True
    assert not alive(int(began.read_text()))


def test_limits_and_the_working_directory_are_the_actors_own(client: spoke.Client, tmp_path: Path) -> None:
    care = spoke.Supervision(rlimits={"nofile": 512, "core": 0})
    (handle,) = on(client).launch("Fragile", cwd=str(tmp_path), supervision=care).result(T_S)
    assert handle.call("limits").result(T_S) == {"nofile": [512, 512], "core": [0, 0]}
    assert handle.call("cwd").result(T_S) == str(tmp_path)


def test_nothing_is_imported_from_the_directory_that_a_client_chose(client: spoke.Client, tmp_path: Path) -> None:
    (tmp_path / "msgpack.py").write_text("raise RuntimeError('brought by the client')")
    (handle,) = on(client).launch("Fragile", cwd=str(tmp_path)).result(T_S)
    assert handle.call("cwd").result(T_S) == str(tmp_path)


def test_a_limit_that_cannot_be_had_is_named(client: spoke.Client) -> None:
    care = spoke.Supervision(rlimits={"nofile": 2**62})
    with pytest.raises(ActorStartFailed, match=f"its limit nofile cannot be set to {2**62}: more than"):
        on(client).launch_command([sys.executable, "-c", ""], supervision=care).result(T_S)


def test_no_process_is_left_of_hooks_and_checks(client: spoke.Client, tmp_path: Path, agents: Pool) -> None:
    """kill -9 of the agent while its actor's exit hook and another's health check run."""
    pids = [tmp_path / "hook", tmp_path / "check"]
    hook = spoke.ExitHook(["sh", "-c", f"echo $$ > {pids[0]}; exec sleep 600"], timeout_s=600)
    check = spoke.HealthCheck(0.05, 600, 1, ["sh", "-c", f"echo $$ > {pids[1]}; exec sleep 600"])
    on(client).launch_command(["true"], supervision=spoke.Supervision(exit_hook=hook)).result(T_S)
    waiting = on(client).launch_command(["sleep", "600"], supervision=spoke.Supervision(health=check))
    for path in pids:
        eventually(lambda path=path: path.exists() and path.read_text().strip() != "", f"{path}", T_S)  # type: ignore[misc]
    for agent in agents.agents:
        os.kill(agent.pid, signal.SIGKILL)
    for path in pids:
        pid = int(path.read_text())
        eventually(lambda pid=pid: not alive(pid), f"the end of {path}", T_S)  # type: ignore[misc]
    with pytest.raises(ActorStartFailed):
        waiting.result(T_S)
