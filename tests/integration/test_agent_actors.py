"""What an agent starts, with what around it, and what it says when that goes wrong."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoke import transport
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import ActorError, ActorUnreachable
from spoke.events.model import ActorSpec
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from tests.integration.agent_harness import (
    SECRET,
    WAIT_S,
    Pool,
    alive,
    command,
    pid_in,
    pool_at,
    shell,
    wait_until,
)


@pytest.fixture
def allocator(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Pool]:
    with pool_at(shared_server.url, pool, tmp_path) as played:
        yield played


def _registered(allocator: Pool) -> r.RegisterNode:
    return next(e.request for e in allocator.requests if isinstance(e.request, r.RegisterNode))


def test_it_registers_with_what_the_node_has(allocator: Pool) -> None:
    allocator.join(labels={"rack": "r1"}, cpus=2.5, memory=1 << 30)
    spec = _registered(allocator).spec
    assert [gpu.uuid for gpu in spec.gpus] == [f"logical-n0-{index}" for index in range(4)]
    assert (spec.address, spec.cpu_milli, spec.memory, spec.labels) == ("127.0.0.1", 2500, 1 << 30, {"rack": "r1"})
    assert spec.ports.count == 8
    assert spec.allow_commands


def test_a_class_starts_serves_calls_and_stops_in_order(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(type_name="Plain"), args={"lr": 0.5}, gpu_ids=(3, 1))
    started = allocator.report(start, r.ReportStarted)
    assert alive(started.pid)
    connection = transport.connect(started.address, SECRET)
    where = connection.call("where").result(WAIT_S)
    assert where == [0, 2, [3, 1], "a1", "t1", {"lr": 0.5}, started.pid]
    assert connection.call("slowly").result(WAIT_S) == "done"
    with pytest.raises(ActorError, match="cannot be called"):
        connection.call("run").result(WAIT_S)
    allocator.stop(start)
    exited = allocator.report(start, r.ReportExited)
    assert (exited.code, exited.signal) == (0, 0)
    with pytest.raises(ActorUnreachable):
        connection.call("where").result(WAIT_S)
    connection.close()


def test_an_actors_process_imports_neither_redis_nor_numpy_nor_asyncio(allocator: Pool) -> None:
    allocator.join()
    started = allocator.report(allocator.start(ActorSpec(type_name="Plain")), r.ReportStarted)
    connection = transport.connect(started.address, SECRET)
    loaded = set(connection.call("modules").result(WAIT_S))
    connection.close()
    assert not loaded & {"redis", "numpy", "asyncio", "psutil", "rich", "spoke.events.model", "spoke.client"}


def test_args_become_keyword_arguments(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(type_name="WithArgs"), args={"name": "x", "count": 3})
    connection = transport.connect(allocator.report(start, r.ReportStarted).address, SECRET)
    assert connection.call("greet").result(WAIT_S) == "x x 3 on rank 0"
    connection.close()


def test_run_that_returns_ends_with_0_and_run_that_raises_with_1(allocator: Pool) -> None:
    allocator.join()
    fine = allocator.start(ActorSpec(type_name="Finishes"))
    broken = allocator.start(ActorSpec(type_name="Raises"), rank=1)
    assert allocator.report(fine, r.ReportExited).code == 0
    assert allocator.report(broken, r.ReportExited).code == 1
    assert "work done" in allocator.log_of(fine).read_text()
    assert "ValueError: the run went wrong" in allocator.log_of(broken).read_text()


def test_the_environment_names_the_gpus_and_what_torch_reads(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    script = f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))"
    start = allocator.start(
        command(script), rank=1, gpu_ids=(3, 1), env={"MINE": "1", "RANK": "99", "SPOKE_LAUNCH": "x"}, master_port=123
    )
    assert allocator.report(start, r.ReportExited).code == 0
    env = json.loads((tmp_path / "env").read_text())
    expected = {
        "CUDA_VISIBLE_DEVICES": "3,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": "3,1",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "123",
        "SPOKE_TICKET": "t1",
        "SPOKE_ACTOR": "a1",
        "SPOKE_POOL": allocator.name,
        "SPOKE_NODE": "n0",
        "MINE": "1",
    }
    assert expected.items() <= env.items()
    assert env["SPOKE_LAUNCH"] == allocator.mark() + start.launch_id
    assert SECRET.decode() not in str(env)
    assert SECRET.hex() not in str(env)


def test_an_actor_without_gpus_sees_none(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    start = allocator.start(shell(f"echo [$CUDA_VISIBLE_DEVICES] > {tmp_path}/seen; false"))
    assert allocator.report(start, r.ReportExited).code == 1
    assert (tmp_path / "seen").read_text() == "[]\n"


def test_no_descriptors_of_the_agent_reach_an_actor(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(shell("ls /proc/self/fd"))
    allocator.report(start, r.ReportExited)
    assert allocator.log_of(start).read_text().split() == ["0", "1", "2", "3"]  # 3: ls reads the directory


def test_an_order_that_carries_a_secret_is_deleted_once_it_is_read(allocator: Pool) -> None:
    allocator.join()
    allocator.report(allocator.start(shell("true")), r.ReportExited)
    key = allocator.keys.node("n0")
    wait_until(lambda: [f[b"type"] for _, f in allocator.client.xrange(key)] == [b"node.welcome"], "it is deleted")


# --- what does not start -----------------------------------------------------------------------------------------


def _why_not(allocator: Pool, start: o.StartActor) -> str:
    reason = allocator.report(start, r.ReportStartFailed).reason
    assert [type(report) for report in allocator.reports(start)] == [r.ReportStartFailed]
    return reason


def test_an_unknown_type_is_told_with_those_that_there_are(allocator: Pool) -> None:
    allocator.join()
    reason = _why_not(allocator, allocator.start(ActorSpec(type_name="Nobody")))
    assert "no actor type 'Nobody'" in reason
    assert "Plain, Raises" in reason
    assert "--import" in reason


def test_an_import_error_is_told_with_its_traceback(allocator: Pool, tmp_path: Path) -> None:
    module = tmp_path / "broken_actors.py"
    module.write_text("import spoke\n\nimport there_is_no_such_module\n")
    allocator.join(imports=[str(module)])
    reason = _why_not(allocator, allocator.start(ActorSpec(type_name="Plain")))
    assert "broken_actors.py" in reason
    assert "actor_main.py" not in reason
    assert "ModuleNotFoundError: No module named 'there_is_no_such_module'" in reason


def test_an_import_that_is_not_there_is_told(allocator: Pool) -> None:
    allocator.join(imports=["nowhere/actors.py"])
    assert "there is no such file" in _why_not(allocator, allocator.start(ActorSpec(type_name="Plain")))


def test_a_type_that_is_registered_twice_is_told(allocator: Pool, tmp_path: Path) -> None:
    text = "import spoke\n@spoke.register_actor('Same')\nclass {}(spoke.Actor): pass\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(text.format(name.title()))
    allocator.join(imports=[str(tmp_path / "one.py"), str(tmp_path / "two.py")])
    reason = _why_not(allocator, allocator.start(ActorSpec(type_name="Same")))
    assert "'Same' is registered twice, by one.One and by two.Two" in reason


def test_an_exception_while_building_is_told(allocator: Pool) -> None:
    allocator.join()
    assert "RuntimeError: no such checkpoint" in _why_not(
        allocator, allocator.start(ActorSpec(type_name="FailsToBuild"))
    )


def test_wrong_arguments_are_told(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(type_name="WithArgs"), args={"colour": "red"})
    reason = _why_not(allocator, start)
    assert "unexpected keyword argument 'colour'" in reason
    assert reason.startswith("TypeError"), "none of it happened in the user's code, and ours is of no use"


def test_a_death_before_the_start_is_told_with_the_end_of_the_log(allocator: Pool) -> None:
    allocator.join()
    reason = _why_not(allocator, allocator.start(ActorSpec(type_name="DiesInInit")))
    assert "exited with code 7 before it was up" in reason
    assert "about to die" in reason


def test_a_start_that_takes_too_long_is_ended(allocator: Pool) -> None:
    allocator.join(start_limit_s=0.5)
    assert "time limit of 0.5 s" in _why_not(allocator, allocator.start(ActorSpec(type_name="SlowToBuild")))


def test_a_stop_before_the_start_is_over_ends_it(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(type_name="SlowToBuild"))
    allocator.stop(start, grace_s=0.2)
    assert "told to stop before it was up" in _why_not(allocator, start)


def test_a_stop_right_behind_the_start_ends_a_command(allocator: Pool) -> None:
    allocator.join()
    starts = [allocator.start(shell("sleep 60"), rank=rank) for rank in range(10)]
    for start in starts:
        allocator.stop(start)
    for start in starts:
        wait_until(
            lambda start=start: [
                x for x in allocator.reports(start) if isinstance(x, (r.ReportExited, r.ReportStartFailed))
            ],
            "an end",
            timeout_s=4.0,  # less than the grace: SIGTERM did it
        )


def test_commands_need_leave(allocator: Pool) -> None:
    allocator.join(allow_commands=False)
    assert "start the agent with --allow-commands" in _why_not(allocator, allocator.start(shell("true")))


def test_a_command_that_is_not_there_is_told(allocator: Pool) -> None:
    allocator.join()
    reason = _why_not(allocator, allocator.start(ActorSpec(argv=("no-such-program", "-x"))))
    assert "'no-such-program' was not found" in reason


def test_a_file_that_cannot_be_run_and_a_directory_that_is_not_there_are_told(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    (tmp_path / "data").write_text("no program")
    assert "Permission denied" in _why_not(allocator, allocator.start(ActorSpec(argv=(str(tmp_path / "data"),))))
    start = allocator.start(ActorSpec(argv=("true",), cwd="/nowhere/at/all"))
    assert "working directory '/nowhere/at/all'" in _why_not(allocator, start)


def test_a_log_that_cannot_be_written_is_told(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    (tmp_path / "logs").write_text("a file where the directory should be")
    assert "cannot be started" in _why_not(allocator, allocator.start(shell("true")))


def test_a_bad_environment_is_told(allocator: Pool) -> None:
    allocator.join()
    assert "'A=B' cannot be set" in _why_not(allocator, allocator.start(shell("true"), env={"A=B": "x"}))


def test_the_same_order_twice_starts_one_actor(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(shell("sleep 60"))
    allocator.order(start)
    allocator.report(start, r.ReportStarted)
    other = allocator.start(shell("true"), rank=1)
    allocator.report(other, r.ReportExited)
    assert len(allocator.reports(start)) == 1


# --- ports -------------------------------------------------------------------------------------------------------


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def test_the_rendezvous_port_is_lent_to_rank_0_and_taken_back(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    port = _registered(allocator).spec.ports.first + 2
    assert not _can_bind(port)
    script = (
        "import os, socket, time\n"
        "held = socket.create_server(('0.0.0.0', int(os.environ['MASTER_PORT'])))\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    start = allocator.start(command(script), master_port=port)
    pid_in(tmp_path / "pid")
    allocator.order(o.CloseTicket("t1", 5.0))
    assert allocator.report(start, r.ReportExited).signal == signal.SIGTERM
    assert not _can_bind(port)  # held again before the report


def test_agents_on_one_machine_hold_different_ports(allocator: Pool) -> None:
    for node_id in ("n0", "n1"):
        allocator.join(node_id)
    specs = [e.request.spec for e in allocator.requests if isinstance(e.request, r.RegisterNode)]
    first, second = (set(range(s.ports.first, s.ports.first + s.ports.count)) for s in specs)
    assert not first & second
    assert not any(map(_can_bind, first | second))


def test_a_program_reads_its_own_stdin_as_empty_and_writes_to_the_log(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(ActorSpec(argv=(sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))")))
    assert allocator.report(start, r.ReportExited).code == 0
    assert allocator.log_of(start).read_text() == "''\n"
