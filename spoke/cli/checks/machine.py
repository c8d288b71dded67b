"""This machine, as ``spoke doctor`` finds it: ports, shared memory, limits of the user and of the container."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spoke.cli.checks.cgroup import read_limits
from spoke.cli.checks.finding import ABSENT, BROKEN, OK, WARNING, Finding
from spoke.cli.output import size

MEMLOCK_BYTES_MIN: Final = 256 << 20
SHM_BYTES_MIN: Final = 1 << 30
FILES_MIN: Final = 4_096
PIDS_MIN: Final = 4_096


def _ports() -> Finding:
    from spoke.agent.inventory import host_name

    try:
        with socket.create_server(("0.0.0.0", 0)):
            pass
    except OSError as error:
        return Finding("ports", BROKEN, f"no port can be listened on: {error}", "allow this user to open sockets")
    try:
        socket.getaddrinfo(host_name(), None)
    except OSError:
        return Finding(
            "ports", WARNING, f"the machine's own name {host_name()} has no address",
            "enter it in /etc/hosts or DNS, or give agents --host",
        )  # fmt: skip
    return Finding("ports", OK, "free ports can be listened on")


def _rendezvous_ports() -> Finding:
    from spoke.agent.config import PORTS_DEFAULT
    from spoke.agent.ports import REGIONS, bind, ephemeral_ports

    low, high = REGIONS[0]
    return port_range(range(low, high + 1), PORTS_DEFAULT, ephemeral_ports(), lambda port: _is_free(bind(port)))


def _is_free(held: socket.socket | None) -> bool:
    if held is None:
        return False
    held.close()
    return True


def port_range(ports: range, wanted: int, ephemeral: range, is_free: Callable[[int], bool]) -> Finding:
    """Whether an agent finds ports in a row for the rendezvous of gangs, where the kernel gives out none itself."""
    if ports.start < ephemeral.stop and ephemeral.start < ports.stop:
        return Finding(
            "rendezvous ports",
            WARNING,
            f"the kernel gives ports {ephemeral.start} to {ephemeral.stop - 1} to everybody, also of {ports.start} to "
            f"{ports.stop - 1}, where agents hold theirs",
            "sysctl net.ipv4.ip_local_port_range='32768 60999'",
        )
    free = longest = run = 0
    for port in ports:
        run = run + 1 if is_free(port) else 0
        free += bool(run)
        longest = max(longest, run)
    text = f"{free} of {len(ports)} from {ports.start} on are free, {longest} of them in a row"
    if longest < wanted:
        remedy = "end what holds them, or give agents a smaller --ports"
        return Finding("rendezvous ports", WARNING, f"{text}; an agent takes {wanted}", remedy)
    return Finding("rendezvous ports", OK, text)


def _shared_memory() -> Finding:
    if not hasattr(os, "memfd_create"):
        return Finding("shared memory", WARNING, "this Python has no memfd_create", "use Python 3.11 on Linux")
    try:
        os.close(os.memfd_create("spoke-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return Finding(
            "shared memory", WARNING, f"memfd_create fails: {error}", "allow memfd_create in the container's profile"
        )
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return Finding("shared memory", OK, "memfd works; there is no /dev/shm")
    return shm(space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)


def shm(total: int, free: int) -> Finding:
    """Whether /dev/shm holds what torch and NCCL put there; both in bytes."""
    text = f"memfd works; /dev/shm has {size(free)} of {size(total)} free"
    if free < SHM_BYTES_MIN:
        return Finding(
            "shared memory", WARNING, text, "torch's data loaders and NCCL need more: docker run --shm-size=8g"
        )
    return Finding("shared memory", OK, text)


def _memlock() -> Finding:
    from spoke.transport.rdma.ports import ports

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return memlock(soft, bool(ports()))


def memlock(soft: int, has_rdma: bool) -> Finding:
    """How much memory may be locked, in bytes."""
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", OK, "unlimited")
    level = WARNING if soft < MEMLOCK_BYTES_MIN and has_rdma else OK
    remedy = "ulimit -l unlimited; LimitMEMLOCK=infinity in the agent's service" if level == WARNING else ""
    return Finding("locked memory", level, f"{soft >> 10} KiB may be locked (RDMA locks what it sends from)", remedy)


def _open_files() -> Finding:
    return open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def open_files(soft: int, hard: int) -> Finding:
    """How many files and sockets a process may have open."""
    if soft == resource.RLIM_INFINITY or soft >= FILES_MIN:
        return Finding("open files", OK, "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    raised = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    return Finding(
        "open files",
        WARNING,
        f"{soft:,} at once (it may be raised to {raised}); every actor that a process calls takes one or more",
        "ulimit -n 65536; LimitNOFILE=65536 in the services, as in deploy/",
    )


def _container() -> Finding:
    from spoke.agent.inventory import cpu_milli, memory_bytes

    found = read_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if found is None:
        return Finding("cgroup", ABSENT, "this machine shows no control groups")
    return container(found.memory, found.cpus, found.pids, offers=(memory_bytes(), cpu_milli() / 1000))


def container(memory: int | None, cpus: float | None, pids: int | None, *, offers: tuple[int, float]) -> Finding:
    """Whether the control group gives what an agent here would offer (memory in bytes, cores); None: no limit."""
    troubles, remedies = [], []
    if memory is not None and memory < offers[0]:
        troubles.append(f"{size(memory)} of memory, and an agent would offer {size(offers[0])}")
        remedies.append(f"--memory {memory >> 30}GiB")
    if cpus is not None and cpus < offers[1]:
        troubles.append(f"{cpus:g} cores, and an agent would offer {offers[1]:g}")
        remedies.append(f"--cpus {cpus:g}")
    remedy = f"raise the limit, or give the agent {' '.join(remedies)}" if remedies else ""
    if pids is not None and pids < PIDS_MIN:
        troubles.append(f"{pids:,} processes and threads")
        remedy = "; ".join(filter(None, [remedy, "raise pids.max (docker run --pids-limit, TasksMax=)"]))
    if troubles:
        return Finding("cgroup", WARNING, f"this control group is limited to {'; '.join(troubles)}", remedy)
    limits = [f"{size(memory)} of memory"] if memory is not None else []
    limits += [f"{cpus:g} cores"] if cpus is not None else []
    return Finding("cgroup", OK, ", ".join(limits) or "no limit that matters")


CHECKS: Final = (_ports, _rendezvous_ports, _shared_memory, _memlock, _open_files, _container)
