"""Machines as network namespaces around one router, any two of which can be parted.

Each machine has a link of its own to the router's namespace. A partition is a pair of blackhole rules there: packets
vanish without a word, as they do when a switch fails; connections stay open and hear nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence


class NoNamespaces(RuntimeError):
    """Network namespaces cannot be made here."""


def _run(*words: str, input: str | None = None) -> None:
    done = subprocess.run(words, input=input, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise NoNamespaces(
            f"`{' '.join(words)}` failed with {done.returncode}: {done.stderr.strip()}. The storm needs network "
            "namespaces with veth links and routing rules: run it as root (CAP_NET_ADMIN, CAP_SYS_ADMIN), with iproute2"
        )


class Network:
    """Use it as a context manager: the namespaces, and with them all links and rules, go at its end."""

    def __init__(self, machines: Sequence[str]) -> None:
        self._prefix = f"spoke-{os.getpid()}-"
        self._numbers = {name: number for number, name in enumerate(machines, 1)}
        self._router = self._prefix + "router"
        self._made: list[str] = []

    def __enter__(self) -> Network:
        if shutil.which("ip") is None:
            raise NoNamespaces("there is no `ip` command: the storm needs iproute2, and to be run as root")
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._made:
            with contextlib.suppress(NoNamespaces):
                _run("ip", "netns", "del", name)
        self._made.clear()

    def _build(self) -> None:
        for name in (self._router, *(self._prefix + machine for machine in self._numbers)):
            _run("ip", "netns", "add", name)
            self._made.append(name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "netns", "exec", self._router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for machine, number in self._numbers.items():
            name = self._prefix + machine
            port = f"port{number}"
            _run("ip", "-n", self._router, "link", "add", port, "type", "veth", "peer", "name", "uplink", "netns", name)
            _run("ip", "-n", self._router, "addr", "add", f"10.77.{number}.1/24", "dev", port)
            _run("ip", "-n", self._router, "link", "set", port, "up")
            _run("ip", "-n", name, "addr", "add", f"{self.address(machine)}/24", "dev", "uplink")
            _run("ip", "-n", name, "link", "set", "uplink", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", f"10.77.{number}.1")

    def address(self, machine: str) -> str:
        """The machine's address, which all others reach."""
        return f"10.77.{self._numbers[machine]}.2"

    def on(self, machine: str) -> tuple[str, ...]:
        """What to put before a command so that it runs there, under the same process id."""
        return ("ip", "netns", "exec", self._prefix + machine)

    def part(self, one: str, other: str) -> None:
        """Let no packet pass between the two."""
        self._rules("add", one, other)

    def join(self, one: str, other: str) -> None:
        """Undo ``part``."""
        self._rules("del", one, other)

    def _rules(self, verb: str, one: str, other: str) -> None:
        a, b = self.address(one), self.address(other)
        lines = [f"rule {verb} from {x} to {y} blackhole pref 50" for x, y in ((a, b), (b, a))]
        _run("ip", "-n", self._router, "-batch", "-", input="\n".join(lines) + "\n")
