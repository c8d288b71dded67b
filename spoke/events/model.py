"""The nouns of the log: GPUs, nodes, resources, gangs and slots.

All values here are frozen. They travel as JSON inside events and requests, so every field is a plain type, and
every check that a value must pass stands in its ``__post_init__``: what decodes is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from spoke.errors import InvalidRequest
from spoke.events import names, terms
from spoke.events.resources import (
    GPU_MILLI,
    GPUS_PER_NODE_MAX,
    NICS_PER_NODE_MAX,
    Resources,
    check_count,
    parse_bytes,
)
from spoke.events.rules import Group, Rules, Strategy
from spoke.events.supervision import Restart, Supervision
from spoke.events.topology import Topology

__all__ = [
    "GPUS_PER_NODE_MAX",
    "GPU_MILLI",
    "ActorSpec",
    "GangSpec",
    "Gpu",
    "Member",
    "Nic",
    "NodeSpec",
    "OnFailure",
    "PortRange",
    "Resources",
    "Slot",
    "check_name",
    "parse_bytes",
]

GANG_SIZE_MAX = 16_384
GROUPS_MAX = 16

check_name = names.check_name
NAME_LENGTH_MAX = names.NAME_LENGTH_MAX

OnFailure = Literal["release", "report"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a node. ``index`` is the physical index (PCI bus order), ``memory`` is in bytes.

    ``numa_node`` is -1 where it is not known.
    """

    index: int
    uuid: str
    model: str = ""
    memory: int = 0
    numa_node: int = -1

    def __post_init__(self) -> None:
        check_count("a GPU's index", self.index, 0, GPUS_PER_NODE_MAX - 1)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports that an agent keeps free for the gangs whose rank 0 runs on its node."""

    first: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        check_count("a port range's first port", self.first, 0, 65_535)
        check_count("a port range's count", self.count, 0, 65_536 - self.first)


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
    node id are told apart by it), ``cpu_milli`` is in thousandths of a core, ``memory`` in bytes. ``version`` is the
    agent's release, ``protocol`` the version of the protocol that it speaks (0: not said).
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
    topology: Topology | None = None
    protocol: int = 0

    def __post_init__(self) -> None:
        check_name("the node id", self.node_id)
        check_count("a node's cpu_milli", self.cpu_milli, 0, 2**40)
        check_count("a node's memory", self.memory, 0, 2**60)
        check_count("a node's number of GPUs", len(self.gpus), 0, GPUS_PER_NODE_MAX)
        if len({gpu.index for gpu in self.gpus}) != len(self.gpus):
            raise InvalidRequest(f"node {self.node_id} lists a GPU index twice: give each GPU its own index")
        if len({nic.name for nic in self.nics}) != len(self.nics) or len(self.nics) > NICS_PER_NODE_MAX:
            raise InvalidRequest(f"node {self.node_id} lists a NIC twice, or more than {NICS_PER_NODE_MAX} of them")
        if self.topology is not None:
            self.topology.check(self.node_id, len(self.gpus), len(self.nics))


@dataclass(frozen=True, slots=True)
class GangSpec:
    """What a client asks for: ``num_nodes`` x ``actors_per_node`` actors with ``resources`` each.

    ``gpu_ids`` names the physical GPUs to use on every node, handed to the local ranks in order; ``gpu_models`` allows
    only nodes whose GPUs are all of one of these models; ``preferred_node`` hosts rank 0 if it can;
    ``on_failure="release"`` gives the gang back when a member fails; ``grace_s`` is the time between SIGTERM and
    SIGKILL. ``rules`` are what it asks of the nodes besides. With ``min_nodes`` it may get fewer nodes, down to these.
    A mixed gang has ``groups``, which say what its members need; ``num_nodes`` is the sum of theirs then. ``terms`` are
    those on which it waits and holds its places.
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
    rules: Rules | None = None
    min_nodes: int = 0
    groups: tuple[Group, ...] = ()
    terms: terms.Terms = terms.DEFAULT

    def __post_init__(self) -> None:
        check_count("num_nodes", self.num_nodes, 1, GANG_SIZE_MAX)
        check_count("actors_per_node", self.actors_per_node, 1, GANG_SIZE_MAX)
        if self.size > GANG_SIZE_MAX:
            raise InvalidRequest(
                f"a gang of {self.shape} = {self.size} actors was asked for; at most {GANG_SIZE_MAX} are allowed: ask "
                f"for several gangs"
            )
        check_count("min_nodes", self.min_nodes, 0, self.num_nodes)
        if self.rules is not None and self.rules.strategy == "strict_pack" and self.strict_pack and self.num_nodes > 1:
            raise InvalidRequest(
                f"the strategy strict_pack puts all actors on one node, and strict_pack=True with num_nodes="
                f"{self.num_nodes} keeps them on {self.num_nodes}: leave strict_pack out, or give num_nodes=1"
            )
        if self.groups:
            self._check_groups(self.groups)
        if self.name != "":
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
            check_count("a GPU id", index, 0, GPUS_PER_NODE_MAX - 1)

    def _check_groups(self, groups: tuple[Group, ...]) -> None:
        if len(groups) > GROUPS_MAX or len({group.name for group in groups}) != len(groups):
            raise InvalidRequest(f"the groups of a mixed gang need different names, and are at most {GROUPS_MAX}")
        if self.gpu_ids is not None or self.min_nodes or self.resources != Resources():
            raise InvalidRequest("a mixed gang takes gpu_ids never, and min_nodes and resources in its groups only")
        if self.num_nodes != sum(group.num_nodes for group in groups):
            raise InvalidRequest("num_nodes of a mixed gang is the sum of those of its groups")
        for group in groups:
            self.part(group)  # its own checks

    @property
    def size(self) -> int:
        """The number of actors, if it gets all its nodes."""
        if self.groups:
            return sum(group.size for group in self.groups)
        return self.num_nodes * self.actors_per_node

    @property
    def shape(self) -> str:
        """Its form in words: ``2x4``, ``1-2x4`` if it may get fewer nodes, ``1x1 controller + 2x4 worker``."""
        if self.groups:
            return " + ".join(f"{_shape(g.min_nodes, g.num_nodes, g.actors_per_node)} {g.name}" for g in self.groups)
        return _shape(self.min_nodes, self.num_nodes, self.actors_per_node)

    @property
    def strategy(self) -> Strategy:
        """How its members go over the nodes."""
        return "pack" if self.rules is None else self.rules.strategy

    @property
    def parts(self) -> tuple[GangSpec, ...]:
        """A gang of like members for each group of a mixed gang; else the gang alone."""
        return tuple(map(self.part, self.groups)) if self.groups else (self,)

    def part(self, group: Group) -> GangSpec:
        """A group as a gang of its own: what it asks for, and what the whole gang asks for besides."""
        whole = self.rules or Rules()
        rules = replace(
            whole,
            strategy=group.strategy or "pack",
            where={**whole.where, **group.where},
            where_not={
                key: (*whole.where_not.get(key, ()), *group.where_not.get(key, ()))
                for key in (*whole.where_not, *group.where_not)
            },
            min_gpu_memory=max(whole.gpu_memory_min, int(group.min_gpu_memory)),
        )
        return GangSpec(
            group.num_nodes,
            group.actors_per_node,
            group.resources,
            group.shaped,
            preferred_node=self.preferred_node if group is self.groups[0] else None,
            gpu_models=tuple(group.gpu_models) or self.gpu_models,
            rules=rules,
            min_nodes=group.min_nodes,
        )

    def of_group(self, name: str) -> GangSpec:
        """What is asked for the members of a group; for a gang without groups, the gang."""
        return next((self.part(group) for group in self.groups if group.name == name), self)

    def resources_of(self, name: str) -> Resources:
        """What one member of a group needs."""
        return next((group.resources for group in self.groups if group.name == name), self.resources)

    def has_size(self, members: Mapping[str, int]) -> bool:
        """Whether a grant with so many members by group is what was asked for."""
        asked = (
            {g.name: (g.min_nodes or g.num_nodes, g.num_nodes, g.actors_per_node) for g in self.groups}
            if self.groups
            else {"": (self.min_nodes or self.num_nodes, self.num_nodes, self.actors_per_node)}
        )
        return members.keys() == asked.keys() and all(
            members[name] % per_node == 0 and least <= members[name] // per_node <= most
            for name, (least, most, per_node) in asked.items()
        )


def _shape(least: int, most: int, per_node: int) -> str:
    return (f"{least}-" if least and least != most else "") + f"{most}x{per_node}"


class Slot(msgspec.Struct, frozen=True):
    """One member's place. ``gpu_ids`` are physical indices on ``node_id``, ``gpu_uuids`` the same GPUs by UUID.

    ``gpu_milli`` is 0 for whole GPUs; else the member has that many thousandths of the one GPU it names. ``nics`` are
    the RDMA ports that it has for itself. ``numa_node`` is where all its GPUs are (-1: on several, or not known),
    ``link`` the farthest of the links between them (empty: not known, or fewer than two). In a mixed gang ``group`` is
    its group's name, and ``rank_in_group`` counts within the group.

    >>> slot = gang.slots[1]
    >>> slot.global_rank, slot.local_rank, slot.node_id, len(slot.gpu_ids)
    (1, 0, 'node-1', 1)
    """

    global_rank: int
    local_rank: int
    group_rank: int
    node_id: str
    host: str
    gpu_ids: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    gpu_milli: int = 0
    nics: tuple[str, ...] = ()
    numa_node: int = -1
    link: str = ""
    group: str = ""
    rank_in_group: int = 0


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """What to run in a slot: a registered type by ``type_name``, or the command ``argv``. Exactly one is set.

    ``cwd`` is its working directory (relative to the agent's; empty: that one). ``supervision`` says how its agent
    looks after it, if there is anything to say.
    """

    type_name: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""
    supervision: Supervision | None = None

    def __post_init__(self) -> None:
        if bool(self.type_name) == bool(self.argv):
            raise InvalidRequest("an actor is either a registered type or a command: give exactly one of the two")
        if self.type_name:
            check_name("the actor type", self.type_name)
        if self.supervision is not None and self.supervision.health is not None:
            if self.argv and not self.supervision.health.argv:
                raise InvalidRequest(
                    "a command's health is checked by another command: give the health check one (argv)"
                )
            if self.type_name and self.supervision.health.argv:
                raise InvalidRequest(
                    "a registered type is asked for its health itself: give its check no command (argv)"
                )

    @property
    def restart(self) -> Restart | None:
        """What follows when it fails; None: nothing."""
        return None if self.supervision is None else self.supervision.restart

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
