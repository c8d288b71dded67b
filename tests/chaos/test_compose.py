"""The compose file in deploy/, without containers: each service on a machine of its own, its words as they stand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spoke.cli.embedded import server_binary
from tests.chaos.storm.network import Network
from tests.daemons import end_all
from tests.fakes import eventually

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
T_S = 60.0
REPLICAS = "import redis; print(redis.Redis(port=26379).execute_command('SENTINEL', 'REPLICAS', 'spoke'))"


class Services:
    """The services of the compose file as processes, which find each other by name, each with a folder of its own."""

    def __init__(self, compose: dict[str, Any], network: Network, directory: Path) -> None:
        self._services, self._network, self._directory = compose["services"], network, directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        hosts = [f"{network.address(name)} {name}" for name in self._services]
        (directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))

    def command(self, name: str, words: list[str]) -> list[str]:
        """What runs ``words`` where the service is."""
        own = self._directory / name
        if not own.exists():
            self._furnish(own)
        steps = f'mount --bind {self._directory}/hosts /etc/hosts && cd {own} && exec "$@"'
        environment = [f"{key}={value}" for key, value in self._services[name].get("environment", {}).items()]
        words = [word.replace("/tmp/", f"{own}/").replace("/etc/spoke/", f"{own}/spoke/") for word in words]
        unshare = ["unshare", "--mount", "sh", "-c", steps, "sh"]
        path = f"PATH={own}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return [*self._network.on(name), *unshare, "env", path, *environment, *words]

    def _furnish(self, own: Path) -> None:
        (own / "bin").mkdir(parents=True)
        for program in ("valkey-server", "valkey-sentinel"):
            (own / "bin" / program).symlink_to(server_binary())
        (own / "spoke").mkdir()
        (own / "spoke" / "redis.conf").write_text((DEPLOY / "redis.conf").read_text())

    def start(self, name: str) -> None:
        service = self._services[name]
        with open(self._directory / f"{name}.out", "ab") as out:
            command = self.command(name, service["command"])
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def run(self, name: str, *words: str) -> str:
        """What a command says, as `docker compose exec` would run it; empty if it fails."""
        command = self.command(name, list(words))
        done = subprocess.run(command, capture_output=True, text=True, timeout=T_S, check=False)
        return done.stdout if done.returncode == 0 else ""

    def said(self) -> str:
        return "\n".join(f"--- {file.stem}\n{file.read_text()[-2000:]}" for file in self._directory.glob("*.out"))


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    with Network(list(compose["services"])) as network, contextlib.ExitStack() as stack:
        services = Services(compose, network, tmp_path)
        stack.callback(lambda: end_all(list(services.processes.values())))
        for name in compose["services"]:  # in the file's order, in which what others depend on comes first
            services.start(name)
        yield services


def test_the_pool_of_the_compose_file_comes_up_and_survives_its_primary(services: Services) -> None:
    words = ("spoke", "run", "--timeout", "30", "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE")

    def a_gang_runs() -> bool:
        for name, process in services.processes.items():
            assert name == "primary" or process.poll() is None, services.said()
        return "rank 0 of 1" in services.run("node", *words)

    eventually(a_gang_runs, "a gang runs on the node", T_S)
    assert "node" in services.run("node", "spoke", "status")
    for name in ("sentinel-1", "sentinel-2", "sentinel-3"):  # before, there is nobody to fail over to
        eventually(lambda name=name: "'ok'" in services.run(name, sys.executable, "-c", REPLICAS), "a replica", T_S)
    services.processes["primary"].kill()
    services.processes["primary"].wait()
    eventually(a_gang_runs, "a gang runs with the replica as the primary", T_S)
