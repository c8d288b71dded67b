"""A storm of faults on a pool of real processes: nothing is granted twice, lost, leaked, or left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.storm import gpus as gpus_program
from tests.chaos.storm.faults import KINDS
from tests.chaos.storm.network import Network, NoNamespaces
from tests.chaos.storm.run import show, storm
from tests.fakes import eventually

SECONDS = float(os.environ.get("SPOKE_STORM_SECONDS", "60"))
SEED = int(os.environ.get("SPOKE_STORM_SEED", "2026"))


@pytest.mark.timeout(SECONDS + 540)
def test_a_pool_in_a_storm_loses_and_leaks_nothing(tmp_path: Path) -> None:
    verdict, faults = storm(tmp_path, SECONDS, SEED)
    told = show(verdict, faults, SEED)
    sys.__stdout__.write(f"\n{told}\n")  # type: ignore[union-attr]  # the numbers are of interest when it passes, too
    assert not verdict.problems, told
    assert sum(faults.values()) >= len(KINDS) / 2, told
    assert verdict.asked["call"] >= 50, told


def test_the_whole_run_finds_gpus_that_are_used_twice(tmp_path: Path) -> None:
    verdict, faults = storm(tmp_path, 3, SEED, planted="wrong-gpu", calm_s=3)
    assert any(line.startswith("two processes on one GPU") for line in verdict.problems), show(verdict, faults, SEED)


def test_parted_machines_hear_nothing_of_each_other_until_they_are_joined() -> None:
    code = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 1.0)"
    with Network(["one", "other", "third"]) as network, contextlib.ExitStack() as stack:
        serve = [*network.on("other"), sys.executable, "-m", "http.server", "7000"]
        server = stack.enter_context(subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(server.kill)

        def reaches(machine: str) -> str:
            command = [*network.on(machine), sys.executable, "-c", code, network.address("other")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            return done.stderr.strip().rpartition("\n")[2]

        eventually(lambda: not reaches("one"), "the server is up", 30)
        network.part("one", "other")
        assert reaches("one") == "TimeoutError: timed out"
        assert not reaches("third")
        network.join("one", "other")
        assert not reaches("one")


def test_two_processes_on_one_gpu_are_seen(tmp_path: Path) -> None:
    def start(ticket: str, gpus: str) -> subprocess.Popen[bytes]:
        env = {"STORM_DIR": str(tmp_path), "SPOKE_NODE": "n1", "SPOKE_TICKET": ticket, "CUDA_VISIBLE_DEVICES": gpus}
        return subprocess.Popen(
            [sys.executable, "-S", str(Path(gpus_program.__file__)), "60"], env=env, stdout=subprocess.PIPE
        )

    processes = [start("t-1", "0,1")]
    try:
        assert processes[0].stdout is not None
        assert processes[0].stdout.readline() == b"holds 2\n"
        processes.append(start("t-2", "1,2"))
        double = tmp_path / "double"
        eventually(lambda: double.exists() and double.read_text(), "the second one is seen", 30)
        assert double.read_text() == "GPU 1 of n1: t-2 found it in use\n"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_storm_without_the_right_to_make_namespaces_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ip").write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(NoNamespaces, match=r"not permitted.*run it as root"), Network(["one"]):
        pass
