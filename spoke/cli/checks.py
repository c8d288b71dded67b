"""The checks of ``spoke doctor``: each looks at one thing and returns what it found, with the remedy.

A check never raises and never waits for long. What Spoke cannot work without is ``broken``; what makes it slower or
less safe is a ``warning``; a feature that is not there and that nobody asked for is ``absent``.
"""

from __future__ import annotations

import ctypes.util
import os
import resource
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from spoke.errors import SpokeError

OK, WARNING, ABSENT, BROKEN = "ok", "warning", "absent", "broken"
SKEW_S_MAX: Final = 2.0
MEMLOCK_BYTES_MIN: Final = 256 << 20
SHM_BYTES_MIN: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: ``level`` is ok, warning, absent or broken; ``remedy`` is empty when there is nothing to do."""

    check: str
    level: str
    found: str
    remedy: str = ""


def check_all(url: str | None, pool: str | None) -> list[Finding]:
    """Every check, in the order in which their troubles should be solved."""
    found = _server(url, pool)
    for check in (_ports, _shared_memory, _memlock, _gpus, *_RDMA):
        try:
            found.append(check())
        except Exception as error:
            found.append(Finding(check.__name__.strip("_"), WARNING, f"the check failed: {error}"))
    return found


def _server(url: str | None, pool: str | None) -> list[Finding]:
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import check_server, connect, explained
    from spoke.protocol.url import mask_url, resolve_pool, resolve_url

    try:
        place = resolve_url(url)
        keys = Keys(resolve_pool(pool))
        with closing(connect(place, pool=keys.pool, timeout_s=5)) as redis, explained(place):
            check_server(redis, place)
            before = time.time()
            seconds, micros = redis.time()
            after = time.time()
            info: dict[str, Any] = redis.info()
    except SpokeError as error:
        return [Finding("server", BROKEN, str(error), "start one (`spoke up`), or give --url or SPOKE_URL")]
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info["redis_version"])
    return [
        Finding("server", OK, f"{name} {version} at {mask_url(place)}"),
        eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))),
        persistence(info),
        skew(seconds + micros / 1e6 - (before + after) / 2, after - before),
    ]


def eviction(policy: str, maxmemory: int) -> Finding:
    """Whether the server may throw parts of the log away."""
    if policy == "noeviction":
        return Finding("eviction", OK, "noeviction")
    level = BROKEN if maxmemory and policy.startswith("allkeys") else WARNING
    return Finding(
        "eviction",
        level,
        f"maxmemory-policy is {policy or 'not known'}: the server may drop parts of the log",
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
    )


def persistence(info: dict[str, Any]) -> Finding:
    """Whether the log is on disk, and what a power failure loses."""
    if str(info.get("aof_enabled", "0")) != "1":
        return Finding(
            "persistence", WARNING, "appendonly is off: a restart of the server loses what is not in its last dump",
            "CONFIG SET appendonly yes, and in its configuration file",
        )  # fmt: skip
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("persistence", BROKEN, "the server cannot write its log to disk", "free space on its disk")
    return Finding("persistence", OK, "appendonly is on")


def skew(difference_s: float, round_trip_s: float) -> Finding:
    """How far this machine's clock is from the server's."""
    text = f"{difference_s:+.3f} s against the server (known to {round_trip_s / 2:.3f} s)"
    if abs(difference_s) - round_trip_s / 2 > SKEW_S_MAX:
        return Finding(
            "clock", WARNING, text, "run chrony or another NTP client; leases are safe, times in logs will mislead"
        )
    return Finding("clock", OK, text)


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
    free = space.f_bavail * space.f_frsize
    if free < SHM_BYTES_MIN:
        return Finding(
            "shared memory", WARNING, f"memfd works; /dev/shm has {free >> 20} MiB free",
            "torch's data loaders need more: docker run --shm-size=1g",
        )  # fmt: skip
    return Finding("shared memory", OK, "memfd works")


def _memlock() -> Finding:
    from spoke.transport.rdma.ports import ports

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", OK, "unlimited")
    level = WARNING if soft < MEMLOCK_BYTES_MIN and ports() else OK
    remedy = "ulimit -l unlimited; LimitMEMLOCK=infinity in the agent's service" if level == WARNING else ""
    return Finding("locked memory", level, f"{soft >> 10} KiB may be locked (RDMA locks what it sends from)", remedy)


def _gpus() -> Finding:
    return nvml(import_module)


def nvml(load: Callable[[str], Any]) -> Finding:
    """Whether GPUs can be detected."""
    from spoke.agent.inventory import NoGpuDriver, find_gpus

    try:
        found = find_gpus("auto", "doctor", load_nvml=load)
    except NoGpuDriver as error:
        driver = os.path.exists("/dev/nvidiactl")
        return Finding("GPUs", WARNING if driver else ABSENT, str(error), "see `nvidia-smi`" if driver else "")
    return Finding("GPUs", OK, ", ".join(f"{gpu.index}: {gpu.model}" for gpu in found) or "NVML reports none")


def _rdma_ports() -> Finding:
    from spoke.transport.rdma.ports import Choice, choose, ports

    known = ports()
    if not known:
        return Finding("RDMA ports", ABSENT, "this machine has no RDMA device")
    shown = "; ".join(
        f"{port.name} {port.state} {port.link_layer} {port.rate_gbps:g} Gb/s, {len(port.gids)} addresses"
        for port in known
    )
    choice = choose(known)
    if not isinstance(choice, Choice):
        return Finding("RDMA ports", WARNING, f"{shown}: {choice}", "bring a port up, or set SPOKE_RDMA_DEVICE")
    return Finding("RDMA ports", OK, f"{shown}; {choice.port.name} with GID {choice.gid.index} would be used")


def _pyverbs() -> Finding:
    from spoke.transport.rdma import verbs
    from spoke.transport.rdma.ports import ports

    problem = verbs.problem()
    if problem is None:
        return Finding("pyverbs", OK, "loads")
    library = ctypes.util.find_library("ibverbs")
    text = problem + (f" (libibverbs is {library})" if library else " (there is no libibverbs, either)")
    if not ports():
        return Finding("pyverbs", ABSENT, text)
    return Finding(
        "pyverbs", WARNING, text, "apt install python3-pyverbs, and use the distribution's version of Python"
    )


def _rdma_device() -> Finding:
    from spoke.transport.rdma.device import acquire, usable

    choice = usable()
    if isinstance(choice, str):
        return Finding("RDMA", ABSENT, f"not used: {choice}")
    try:
        device = acquire(choice)
    except Exception as error:
        return Finding("RDMA", WARNING, str(error), "calls between hosts go over TCP until this works")
    try:
        device.staging.give_back(device.staging.take(1 << 20))
        buffers = "one-sided" if device.verbs.fork_is_safe else "by calls, since the kernel is older than Linux 5.12"
        text = f"{choice.port.name} opens, memory can be registered, path MTU {device.mtu_bytes}; buffers go {buffers}"
        return Finding("RDMA", OK, text)
    except SpokeError as error:
        return Finding("RDMA", WARNING, str(error), "raise the limit of locked memory")
    finally:
        device.release()


_RDMA: Final = (_rdma_ports, _pyverbs, _rdma_device)
