"""What a node has: GPUs (logical, or asked of NVML), NICs, CPUs, memory, and the address where others reach it.

Every function takes what it reads from as an argument with a default, so that a test needs no such machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import psutil

from spoke.errors import InvalidRequest, SpokeError
from spoke.events.model import GPUS_PER_NODE_MAX, Gpu, Nic
from spoke.protocol.url import parse_place
from spoke.transport.rdma.ports import SYSFS, ports

LOOPBACK = "127.0.0.1"


class NoGpuDriver(SpokeError):
    """GPUs were to be detected, and there is no way to."""

    code = "no_gpu_driver"


def find_gpus(
    gpus: int | Literal["auto"],
    node_id: str,
    *,
    load_nvml: Callable[[str], Any] = import_module,
    env: Mapping[str, str] = os.environ,
) -> tuple[Gpu, ...]:
    """``gpus`` logical GPUs, or with ``"auto"`` those that NVML reports, in the order of the PCI bus.

    An agent that was itself given some GPUs only, by CUDA_VISIBLE_DEVICES, offers those. Raises NoGpuDriver for
    ``"auto"`` where there is no driver or no ``pynvml``, InvalidRequest for a number out of range.
    """
    if gpus == "auto":
        return _visible(_ask_nvml(load_nvml), env.get("CUDA_VISIBLE_DEVICES"))
    if type(gpus) is not int or not 0 <= gpus <= GPUS_PER_NODE_MAX:
        raise InvalidRequest(f'gpus must be "auto" or a number from 0 to {GPUS_PER_NODE_MAX}, not {gpus!r}')
    return tuple(Gpu(index, f"logical-{node_id}-{index}", "logical") for index in range(gpus))


def _ask_nvml(load: Callable[[str], Any]) -> tuple[Gpu, ...]:
    try:
        nvml = load("pynvml")
    except ImportError as error:
        raise NoGpuDriver(
            "--gpus auto asks NVML, and its Python module pynvml is not installed: pip install "
            "'spoke-scheduler[nvml]', or declare logical GPUs with --gpus N"
        ) from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoGpuDriver(
            f"--gpus auto asks NVML, and it answers {str(error)!r}: see whether nvidia-smi works here; on a machine "
            f"without NVIDIA GPUs declare logical ones with --gpus N"
        ) from error
    try:
        return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:
        raise NoGpuDriver(
            f"--gpus auto: NVML answers {str(error)!r} when asked for the GPUs: see nvidia-smi"
        ) from error
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # machines whose GPU shares the system's memory have none to report
        memory = 0
    return Gpu(index, _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)), memory)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[Gpu, ...]:
    """Those of the GPUs that CUDA_VISIBLE_DEVICES names, by index or by the beginning of the UUID."""
    if visible is None:
        return gpus
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(gpu for gpu in gpus if any(name == str(gpu.index) or gpu.uuid.startswith(name) for name in names))


def find_nics(root: Path = SYSFS) -> tuple[Nic, ...]:
    """The RDMA ports, as the kernel shows them; none where there is no RDMA."""
    found = []
    for port in ports(root):
        gid = port.best_gid()
        found.append(
            Nic(
                name=port.name,
                link_layer=port.link_layer,
                rate_gbps=port.rate_gbps,
                guid=port.guid,
                gid=str(gid.gid) if gid is not None else "",
                numa_node=port.numa_node if port.numa_node is not None else -1,
                active=port.active,
            )
        )
    return tuple(found)


def cpu_milli(affinity: Callable[[int], set[int]] = os.sched_getaffinity) -> int:
    """The cores that this process may use, in thousandths."""
    return len(affinity(0)) * 1000


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """The machine's memory, or what the container may use of it."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = cgroup.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def host_name() -> str:
    """The machine's name."""
    return socket.gethostname()


def machine_id(boot_id: Path = Path("/proc/sys/kernel/random/boot_id"), hostname: str | None = None) -> str:
    """Names this boot of this machine, or this container: where the processes of one agent can be seen by the next."""
    try:
        boot = boot_id.read_text().strip()
    except OSError:
        boot = str(int(psutil.boot_time()))
    try:
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        namespace = "0"
    return f"{boot}/{hostname or host_name()}/{namespace}"


def server_place(url: str) -> str:
    """The server by its address, so that two names of one server give the same: ``ADDRESS:PORT/DB``, or a path."""
    place = parse_place(url)
    if place.kind == "socket":
        return os.path.realpath(str(place.options["path"]))
    names = []
    for host, port in place.addresses:
        with contextlib.suppress(OSError):
            host = str(min(found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        if ipaddress_of(host) in ("127.0.0.1", "::1"):
            host = LOOPBACK
        names.append(f"{host}:{port}")
    return f"{','.join(sorted(names))}/{place.service}{place.options.get('db', 0)}"


def ipaddress_of(host: str) -> str:
    """The address in its usual form; the text itself if it is none."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def routable_address(url: str) -> str:
    """This machine's address on the route to the server, where other nodes reach it too; else the loopback."""
    found = []
    for host, port in parse_place(url).addresses:
        with contextlib.suppress(OSError):
            found += socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    for family, kind, proto, _, place in found:
        try:
            with socket.socket(family, kind, proto) as probe:
                probe.connect(place)  # sends nothing: a datagram socket only picks its route
                address = str(probe.getsockname()[0])
        except OSError:
            continue
        return LOOPBACK if ipaddress.ip_address(address.partition("%")[0]).is_loopback else address
    return LOOPBACK
