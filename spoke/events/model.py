"""The nouns of the log: GPUs, nodes, resources, gangs and slots.

All values here are frozen. They travel as JSON inside events and requests, so every field is a plain type, and
every check that a value must pass stands in its ``__post_init__``: what decodes is valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spoke.errors import InvalidRequest
from spoke.events import names

GANG_SIZE_MAX = 16_384
GPUS_PER_NODE_MAX = 1_024
NICS_PER_NODE_MAX = 256
GPU_MILLI = 1_000
"""A whole GPU, in the thousandths in which shares are counted."""

check_name = names.check_name
NAME_LENGTH_MAX = names.NAME_LENGTH_MAX

OnFailure = Literal["release", "report"]


def _check_count(what: str, value: int, at_least: int, at_most: int) -> None:
    if type(value) is not int or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be a whole number from {at_least} to {at_most}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a node. ``index`` is the physical index (PCI bus order), ``memory`` is in bytes."""

    index: int
    uuid: str
    model: str = ""
    memory: int = 0

    def __post_init__(self) -> None:
        _check_count("a GPU's index", self.index, 0, GPUS_PER_NODE_MAX - 1)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports that an agent keeps free for the gangs whose rank 0 runs on its node."""

    first: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        _check_count("a port range's first port", self.first, 0, 65_535)
        _check_count("a port range's count", self.count, 0, 65_536 - self.first)


@dataclass(frozen=True, slots=True)
class Nic:
    """One RDMA port of a node: ``name`` is ``device:port``, ``rate_gbps`` is in gigabits a second.

    ``link_layer`` is InfiniBand or Ethernet; ``gid`` is the address that would be used, ``guid`` the device's;
    ``numa_node`` is -1 where it is not known.
    """

    name: str
    link_layer: str = ""
    rate_gbps: float = 0.0
    guid: str = ""
    gid: str = ""
    numa_node: int = -1
    active: bool = True

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > names.NAME_LENGTH_MAX or not self.name.isprintable():
            raise InvalidRequest(f"{self.name!r:.80} is no name of a NIC; it looks like mlx5_0:1")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What an agent says of its node when it registers.

    ``address`` is where the other nodes reach it, ``machine`` identifies the booted machine (two agents with one
    node id are told apart by it), ``cpu_milli`` is in thousandths of a core, ``memory`` in bytes.
    """

    node_id: str
    host: str
    address: str
    machine: str = ""
    gpus: tuple[Gpu, ...] = ()
    cpu_milli: int = 0
    memory: int = 0
    ports: PortRange = field(default_factory=PortRange)
    labels: Mapping[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    allow_commands: bool = False
    pid: int = 0
    version: str = ""
    nics: tuple[Nic, ...] = ()

    def __post_init__(self) -> None:
        check_name("the node id", self.node_id)
        _check_count("a node's cpu_milli", self.cpu_milli, 0, 2**40)
        _check_count("a node's memory", self.memory, 0, 2**60)
        _check_count("a node's number of GPUs", len(self.gpus), 0, GPUS_PER_NODE_MAX)
        if len({gpu.index for gpu in self.gpus}) != len(self.gpus):
            raise InvalidRequest(f"node {self.node_id} lists a GPU index twice: give each GPU its own index")
        if len({nic.name for nic in self.nics}) != len(self.nics) or len(self.nics) > NICS_PER_NODE_MAX:
            raise InvalidRequest(f"node {self.node_id} lists a NIC twice, or more than {NICS_PER_NODE_MAX} of them")


_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGTP", start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?(?:i?B)?)\Z", re.IGNORECASE)
_UNITS_FOLDED = {unit.lower(): factor for unit, factor in _UNITS.items()}


def parse_bytes(text: str | int) -> int:
    """Read a size: a number of bytes, or text like ``"10GiB"``, ``"512MB"``, ``"2G"`` (G means GiB).

    >>> parse_bytes("2KiB"), parse_bytes("2KB"), parse_bytes(7)
    (2048, 2000, 7)
    """
    if isinstance(text, int):
        return text
    found = _SIZE.match(text.strip())
    if not found or found[2].lower() not in _UNITS_FOLDED:
        raise InvalidRequest(f"{text!r} is not a size: write a number of bytes, or e.g. 512MB, 10GiB, 2G")
    return int(float(found[1]) * _UNITS_FOLDED[found[2].lower()])


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor needs: GPUs, CPU cores (fractions allowed) and memory (bytes, or ``"10GiB"``).

    ``gpus`` is a whole number, or a fraction below 1: then the actor has a share of one GPU, rounded down to
    thousandths (so that six sixths fit). ``gpu_memory`` (bytes, or text) is what it needs of a GPU's memory: without
    ``gpus`` that is its share, beside a fraction the share is the larger of the two.

    >>> Resources(gpus=2, cpus=1.5, memory="1GiB").memory
    1073741824
    >>> Resources(gpus=0.25).gpu_milli, Resources(gpu_memory="10GiB").share_of(40 << 30)
    (250, 250)
    """

    gpus: int | float = 0
    cpus: float = 0.0
    memory: int | str = 0
    gpu_memory: int | str = 0

    def __post_init__(self) -> None:
        for name in ("memory", "gpu_memory"):
            size = getattr(self, name)
            if isinstance(size, str):
                object.__setattr__(self, name, parse_bytes(size))
            _check_count(name, getattr(self, name), 0, 2**60)
        if type(self.gpus) is not int:
            object.__setattr__(self, "gpus", _gpus(self.gpus))
        _check_count("gpus", self.gpu_count, 0, GPUS_PER_NODE_MAX)
        if self.gpu_memory and self.gpu_count:
            raise InvalidRequest(
                f"{self.gpu_count} whole GPUs and gpu_memory were asked for: gpu_memory makes a share of one GPU, so "
                f"give it alone or with a fraction"
            )
        if isinstance(self.cpus, bool) or not isinstance(self.cpus, (int, float)) or not 0 <= self.cpus <= 2**20:
            raise InvalidRequest(f"cpus must be a number of cores from 0 to {2**20}, not {self.cpus!r}")
        object.__setattr__(self, "cpus", float(self.cpus))  # as it is read back from the log

    @property
    def is_share(self) -> bool:
        """Whether the actor has a share of one GPU, instead of whole ones."""
        return type(self.gpus) is float or (self.gpus == 0 and self.gpu_memory != 0)

    @property
    def gpu_count(self) -> int:
        """The number of whole GPUs; 0 for a share."""
        return self.gpus if type(self.gpus) is int else 0

    @property
    def gpu_milli(self) -> int:
        """The share that ``gpus`` asks for, in thousandths of a GPU; 0 if the share follows from ``gpu_memory``."""
        return round(self.gpus * GPU_MILLI) if type(self.gpus) is float else 0

    def share_of(self, gpu_memory: int) -> int:
        """The share of a GPU that has so much memory (bytes), in thousandths; 0 if the need does not go into it."""
        wanted = int(self.gpu_memory)
        if wanted > gpu_memory:
            return 0
        return max(self.gpu_milli, -(-wanted * GPU_MILLI // gpu_memory)) if wanted else self.gpu_milli

    @property
    def cpu_milli(self) -> int:
        """The CPU need in thousandths of a core: the state counts in integers, so that sums are exact."""
        return round(self.cpus * 1000)

    @property
    def memory_bytes(self) -> int:
        """The memory need in bytes."""
        return int(self.memory)


def _gpus(asked: float) -> int | float:
    """A number of GPUs as it is counted: whole, or a share in thousandths."""
    if isinstance(asked, bool) or not isinstance(asked, float) or not 0 <= asked <= GPUS_PER_NODE_MAX:
        raise InvalidRequest(f"gpus must be a whole number or a fraction below 1, not {asked!r}")
    if asked.is_integer():
        return int(asked)
    milli = int(asked * GPU_MILLI + 1e-6)
    if not 1 <= milli < GPU_MILLI:
        raise InvalidRequest(
            f"{asked!r} GPUs were asked for: a share is from 0.001 to 0.999 of one GPU; above that, ask for whole GPUs"
        )
    return milli / GPU_MILLI


@dataclass(frozen=True, slots=True)
class GangSpec:
    """What a client asks for: ``num_nodes`` x ``actors_per_node`` actors with ``resources`` each.

    ``gpu_ids`` names the physical GPUs to use on every node, handed to the local ranks in order; ``gpu_models`` allows
    only nodes whose GPUs are all of one of these models; ``preferred_node`` hosts rank 0 if it can;
    ``on_failure="release"`` gives the gang back when a member fails; ``grace_s`` is the time between SIGTERM and
    SIGKILL.
    """

    num_nodes: int
    actors_per_node: int
    resources: Resources = field(default_factory=Resources)
    strict_pack: bool = True
    preferred_node: str | None = None
    gpu_ids: tuple[int, ...] | None = None
    gpu_models: tuple[str, ...] = ()
    detached: bool = False
    on_failure: OnFailure = "report"
    grace_s: float = 5.0
    name: str = ""

    def __post_init__(self) -> None:
        _check_count("num_nodes", self.num_nodes, 1, GANG_SIZE_MAX)
        _check_count("actors_per_node", self.actors_per_node, 1, GANG_SIZE_MAX)
        if self.size > GANG_SIZE_MAX:
            raise InvalidRequest(
                f"a gang of {self.num_nodes} x {self.actors_per_node} = {self.size} actors was asked for; "
                f"at most {GANG_SIZE_MAX} are allowed: ask for several gangs"
            )
        if self.name:
            check_name("the gang's name", self.name)
        if self.preferred_node is not None:
            check_name("preferred_node", self.preferred_node)
        if not 0 <= self.grace_s <= 3600:
            raise InvalidRequest(f"grace_s must be from 0 to 3600 seconds, not {self.grace_s!r}")
        if self.gpu_ids is not None:
            self._check_gpu_ids(self.gpu_ids)

    def _check_gpu_ids(self, gpu_ids: tuple[int, ...]) -> None:
        if not self.strict_pack:
            raise InvalidRequest("gpu_ids was given with strict_pack=False: specific GPUs need strict_pack=True")
        if self.resources.is_share:
            raise InvalidRequest("gpu_ids was given for shares of a GPU: name GPUs for whole ones only")
        per_node = self.actors_per_node * self.resources.gpu_count
        if len(set(gpu_ids)) != len(gpu_ids) or len(gpu_ids) != per_node:
            raise InvalidRequest(
                f"gpu_ids has {len(set(gpu_ids))} different ids, but a node of this gang uses {per_node} "
                f"(actors_per_node x gpus): name exactly that many"
            )
        for index in gpu_ids:
            _check_count("a GPU id", index, 0, GPUS_PER_NODE_MAX - 1)

    @property
    def size(self) -> int:
        """The number of actors."""
        return self.num_nodes * self.actors_per_node


@dataclass(frozen=True, slots=True)
class Slot:
    """One member's place. ``gpu_ids`` are physical indices on ``node_id``, ``gpu_uuids`` the same GPUs by UUID.

    ``gpu_milli`` is 0 for whole GPUs; else the member has that many thousandths of the one GPU it names.
    """

    global_rank: int
    local_rank: int
    group_rank: int
    node_id: str
    host: str
    gpu_ids: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    gpu_milli: int = 0


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """What to run in a slot: a registered type by ``type_name``, or the command ``argv``. Exactly one is set."""

    type_name: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""

    def __post_init__(self) -> None:
        if bool(self.type_name) == bool(self.argv):
            raise InvalidRequest("an actor is either a registered type or a command: give exactly one of the two")
        if self.type_name:
            check_name("the actor type", self.type_name)

    @property
    def title(self) -> str:
        """The type's name, or the command as one readable line."""
        return self.type_name or " ".join(self.argv)


@dataclass(frozen=True, slots=True)
class Member:
    """One actor of a launch: which rank, under which id."""

    rank: int
    actor_id: str

    def __post_init__(self) -> None:
        check_name("the actor id", self.actor_id)
