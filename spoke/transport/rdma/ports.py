"""The RDMA ports of this machine, as the kernel shows them, and which of them to use. Needs no pyverbs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys/class/infiniband")
DEVICE_VARIABLE: Final = "SPOKE_RDMA_DEVICE"
GID_VARIABLE: Final = "SPOKE_RDMA_GID_INDEX"
MTU_VARIABLE: Final = "SPOKE_RDMA_MTU"
NICS_VARIABLE: Final = "SPOKE_NICS"
_GIDS_MAX: Final = 256
_RATE: Final = re.compile(r"([0-9.]+) Gb/sec")


@dataclass(frozen=True, slots=True)
class GidEntry:
    """One address of a port."""

    index: int
    gid: IPv6Address
    kind: str
    netdev: str


@dataclass(frozen=True, slots=True)
class Port:
    """One port of one RDMA device. ``rate_gbps`` is gigabits per second, ``link_layer`` InfiniBand or Ethernet."""

    device: str
    port: int
    state: str
    link_layer: str
    rate_gbps: float
    lid: int
    guid: str
    gids: tuple[GidEntry, ...]
    numa_node: int | None = None

    @property
    def name(self) -> str:
        """The port as it is named in the configuration: device:port."""
        return f"{self.device}:{self.port}"

    @property
    def active(self) -> bool:
        """Whether it can carry data."""
        return self.state == "ACTIVE"

    def best_gid(self) -> GidEntry | None:
        """The address to use: RoCEv2 over IPv4, then over IPv6, then what there is; InfiniBand: the first."""
        if self.link_layer == "InfiniBand":
            return self.gids[0] if self.gids else None
        return min(self.gids, key=_gid_rank, default=None)


@dataclass(frozen=True, slots=True)
class Choice:
    """A port and an address of it."""

    port: Port
    gid: GidEntry
    mtu_bytes_max: int | None = None


def _gid_rank(entry: GidEntry) -> tuple[bool, bool, bool, int]:
    return (entry.kind != "RoCE v2", entry.gid.is_link_local, entry.gid.ipv4_mapped is None, entry.index)


def ports(root: Path = SYSFS) -> list[Port]:
    """Every port, in the order of their names; none where there is no RDMA."""
    try:
        devices = sorted(root.iterdir())
    except OSError:
        return []
    found = []
    for device in devices:
        try:
            numbers = sorted(int(entry.name) for entry in (device / "ports").iterdir())
        except (OSError, ValueError):
            continue
        found += [_port(device, number) for number in numbers]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _port(device: Path, number: int) -> Port:
    here = device / "ports" / str(number)
    rate = _RATE.match(_text(here / "rate"))
    numa = _text(device / "device" / "numa_node")
    lid = _text(here / "lid")
    return Port(
        device=device.name,
        port=number,
        state=_text(here / "state").partition(": ")[2] or "unknown",
        link_layer=_text(here / "link_layer") or "unknown",
        rate_gbps=float(rate[1]) if rate else 0.0,
        lid=int(lid, 16) if lid else 0,
        guid=_text(device / "node_guid"),
        gids=tuple(_gids(here)),
        numa_node=int(numa) if numa and int(numa) >= 0 else None,
    )


def _gids(here: Path) -> list[GidEntry]:
    try:
        indexes = sorted(int(entry.name) for entry in (here / "gids").iterdir())[:_GIDS_MAX]
    except (OSError, ValueError):
        return []
    found = []
    for index in indexes:
        text = _text(here / "gids" / str(index))
        gid = IPv6Address(text) if text else IPv6Address(0)
        if int(gid) & (1 << 64) - 1:  # an unused entry is all zero, or a prefix alone
            kind, netdev = (_text(here / "gid_attrs" / part / str(index)) for part in ("types", "ndevs"))
            found.append(GidEntry(index, gid, kind, netdev))
    return found


def choose(known: list[Port], environ: Mapping[str, str] = os.environ) -> Choice | str:
    """The port and address to use, or why there is none.

    SPOKE_RDMA_DEVICE (a device, or device:port) and SPOKE_RDMA_GID_INDEX decide; else a port among the NICs that this
    actor was given (SPOKE_NICS); else the fastest active one.
    """
    if not known:
        return "this machine has no RDMA device"
    wanted = environ.get(DEVICE_VARIABLE, "").strip()
    given = [name.strip() for name in environ.get(NICS_VARIABLE, "").split(",") if name.strip()]
    names = [wanted] if wanted else given
    candidates = [port for port in known if not names or port.device in names or port.name in names]
    variable = DEVICE_VARIABLE if wanted else NICS_VARIABLE
    if not candidates:
        return f"{variable} names {', '.join(names)}; this machine has {', '.join(port.name for port in known)}"
    active = [port for port in candidates if port.active]
    if not active:
        return "no RDMA port is active: " + ", ".join(f"{port.name} is {port.state}" for port in candidates)
    port = max(active, key=lambda port: port.rate_gbps)
    gid = port.best_gid()
    index, mtu = environ.get(GID_VARIABLE, "").strip(), environ.get(MTU_VARIABLE, "").strip()
    if index:
        gid = next((entry for entry in port.gids if str(entry.index) == index), None)
        if gid is None:
            return f"{GID_VARIABLE} is {index}; {port.name} has {[entry.index for entry in port.gids]}"
    if gid is None:
        return f"{port.name} has no address (GID); give its network interface an IP address"
    if mtu and mtu not in ("256", "512", "1024", "2048", "4096"):
        return f"{MTU_VARIABLE} is {mtu}; it must be 256, 512, 1024, 2048 or 4096"
    return Choice(port, gid, int(mtu) if mtu else None)
