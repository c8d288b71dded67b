"""What an agent finds out of its node's topology: from NVML and sysfs, or from a file where there is no hardware.

The levels are those of ``nvidia-smi topo -m`` (see ``spoke.events.topology``). NVLinks are counted per pair of GPUs;
links into NVSwitches connect a GPU with every other GPU that has some. How far a NIC is from a GPU follows from their
places in the tree of PCI devices, as sysfs shows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from spoke.errors import InvalidRequest, SpokeError
from spoke.events.model import Gpu, Nic
from spoke.events.topology import Topology

_ANCESTORS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's nvmlGpuTopologyLevel_t; two GPUs of one board (0) have one switch."""
NVLINKS_MAX = 36
_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
PCI = Path("/sys/bus/pci/devices")
INFINIBAND = Path("/sys/class/infiniband")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """GPUs and NICs with their NUMA nodes, and how near they are to each other."""

    gpus: tuple[Gpu, ...]
    nics: tuple[Nic, ...]
    topology: Topology | None


def from_nvml(
    gpus: Sequence[Gpu], nics: Sequence[Nic], nvml: Any, *, pci: Path = PCI, infiniband: Path = INFINIBAND
) -> Found:
    """What NVML (initialized) and sysfs say. Raises NVMLError; what a driver does not know is left out."""
    handles = [nvml.nvmlDeviceGetHandleByUUID(gpu.uuid) for gpu in gpus]
    addresses = [_bus_id(nvml, handle) for handle in handles]
    places = [_place(pci / address) for address in addresses]
    placed = tuple(replace(gpu, numa_node=_numa(pci / address)) for gpu, address in zip(gpus, addresses, strict=True))
    links = _links(nvml, handles, addresses)
    nic_links = []
    for gpu, place in zip(placed, places, strict=True):
        row = []
        for nic in nics:
            device = _place(infiniband / nic.name.partition(":")[0] / "device")
            row.append(pci_level(place, device, gpu.numa_node, nic.numa_node))
        nic_links.append(tuple(row))
    return Found(placed, tuple(nics), Topology(links, tuple(nic_links) if nics else ()))


def _bus_id(nvml: Any, handle: Any) -> str:
    found = nvml.nvmlDeviceGetPciInfo(handle).busId
    text = (found.decode() if isinstance(found, bytes) else found).lower()
    domain, _, rest = text.partition(":")
    return f"{domain[-4:]}:{rest}"  # NVML writes eight digits of the domain, sysfs four


def _links(nvml: Any, handles: Sequence[Any], addresses: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    nvlinks = [_nvlinks(nvml, handle) for handle in handles]

    def level(one: int, other: int) -> str:
        if one == other:
            return "X"
        direct = min(nvlinks[one].get(addresses[other], 0), nvlinks[other].get(addresses[one], 0))
        switched = min(nvlinks[one].get("switch", 0), nvlinks[other].get("switch", 0))
        if direct + switched:
            return f"NV{direct + switched}"
        return _ANCESTORS.get(nvml.nvmlDeviceGetTopologyCommonAncestor(handles[one], handles[other]), "SYS")

    upper = {(i, j): level(i, j) for i in range(len(handles)) for j in range(i, len(handles))}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(len(handles))) for i in range(len(handles)))


def _nvlinks(nvml: Any, handle: Any) -> dict[str, int]:
    """The active NVLinks of a GPU by what is at their other end: a GPU's PCI address, or ``switch``."""
    found: dict[str, int] = {}
    for link in range(NVLINKS_MAX):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == _SWITCH:
                end = "switch"
            else:
                remote = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId
                text = (remote.decode() if isinstance(remote, bytes) else remote).lower()
                domain, _, rest = text.partition(":")
                end = f"{domain[-4:]}:{rest}"
        except nvml.NVMLError:  # no NVLink at all, or no such link
            continue
        found[end] = found.get(end, 0) + 1
    return found


def _numa(device: Path) -> int:
    try:
        return int((device / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


def _place(device: Path) -> tuple[str, ...]:
    """The device's place in the tree: its host bridge, then the bridges down to it; empty if it is not there."""
    parts = os.path.realpath(device).split("/")
    root = next((at for at, part in enumerate(parts) if re.match(r"pci[0-9a-f]{4}", part)), None)
    return () if root is None else tuple(parts[root : root + 1] + [p for p in parts[root + 1 :] if _ADDRESS.match(p)])


def pci_level(one: tuple[str, ...], other: tuple[str, ...], numa: int = -1, other_numa: int = -1) -> str:
    """How far two PCI devices are from each other.

    >>> pci_level(("pci0000:10", "a", "b", "c", "gpu"), ("pci0000:10", "a", "b", "d", "nic"))
    'PIX'
    >>> pci_level(("pci0000:10", "a", "gpu"), ("pci0000:20", "a", "nic"), 0, 1)
    'SYS'
    """
    if not one or not other or one[0] != other[0]:
        return "NODE" if numa == other_numa >= 0 else "SYS"
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    if common < 2:
        return "PHB"
    farther = max(len(one), len(other)) - common
    return "PIX" if farther <= 2 else "PXB"


def from_file(path: Path, gpus: Sequence[Gpu], nics: Sequence[Nic]) -> Found:
    """What a YAML file says: ``numa`` (a NUMA node for each GPU), ``links``, ``nics`` and ``nic_links``.

    NICs in the file take the place of those that were found. Raises InvalidRequest.
    """
    what = f"the topology file {path}"
    try:
        read = _load_yaml(path.read_text())
    except OSError as error:
        raise InvalidRequest(f"{what} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{what} cannot be read: it is not text, or nested too deep ({error})") from error
    if not isinstance(read, Mapping) or not read.keys() <= {"numa", "links", "nics", "nic_links"}:
        raise InvalidRequest(
            f"{what} must be a mapping with the keys numa, links, nics, nic_links, as far as they are known"
        )
    try:
        numa = [int(node) for node in read.get("numa") or [gpu.numa_node for gpu in gpus]]
        named = tuple(_nic(entry) for entry in read["nics"]) if read.get("nics") else tuple(nics)
        topology = Topology(_rows(read.get("links")), _rows(read.get("nic_links")))
        if len(numa) != len(gpus):
            raise InvalidRequest(f"it gives {len(numa)} NUMA nodes, and the node has {len(gpus)} GPUs")
        topology.check("", len(gpus), len(named))
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError, SpokeError) as error:
        raise InvalidRequest(f"{what} does not fit: {error}") from error
    placed = tuple(replace(gpu, numa_node=node) for gpu, node in zip(gpus, numa, strict=True))
    return Found(placed, named, topology if topology != Topology() else None)


def _nic(entry: Any) -> Nic:
    if isinstance(entry, str):
        return Nic(entry)
    return Nic(str(entry["name"]), rate_gbps=float(entry.get("rate_gbps", 0.0)), numa_node=int(entry.get("numa", -1)))


def _rows(rows: Any) -> tuple[tuple[str, ...], ...]:
    """Levels as lists of words, or as lines of them."""
    lines = rows.strip().splitlines() if isinstance(rows, str) else rows or []
    return tuple(tuple(str(word) for word in (line.split() if isinstance(line, str) else line)) for line in lines)


def _load_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"the topology file is no YAML: {error}") from error


Source = Callable[[Sequence[Gpu], Sequence[Nic]], Found]
"""Where the topology comes from; tests give their own."""
