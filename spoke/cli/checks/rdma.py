"""RDMA, as ``spoke doctor`` finds it: ports and their addresses, the bindings, and whether a device really opens."""

from __future__ import annotations

import ctypes.util
from typing import Final

from spoke.cli.checks.finding import ABSENT, OK, WARNING, Finding
from spoke.errors import SpokeError


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


CHECKS: Final = (_rdma_ports, _pyverbs, _rdma_device)
