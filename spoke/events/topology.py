"""How near the GPUs of a node are to each other and to its NICs, in the words of ``nvidia-smi topo -m``.

From near to far: ``NV<n>`` (n NVLinks), ``PIX`` (one PCIe switch), ``PXB`` (several), ``PHB`` (through the CPU's PCIe
host bridge), ``NODE`` (between host bridges of one NUMA node), ``SYS`` (between NUMA nodes). ``X`` is the GPU itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spoke.errors import InvalidRequest

_COSTS = {"X": 0, "PIX": 40, "PXB": 50, "PHB": 60, "NODE": 80, "SYS": 100}
_NVLINK = re.compile(r"NV([1-9]\d?)\Z")
LEVELS = "NV1 to NV99, PIX, PXB, PHB, NODE, SYS"


def cost(level: str) -> int:
    """How far a level is: 0 for X, 2 to 19 over NVLink (more links, nearer), 40 to 100 over PCIe and between CPUs.

    >>> cost("NV18"), cost("NV2"), cost("PIX"), cost("SYS")
    (2, 18, 40, 100)
    """
    found = _COSTS.get(level)
    if found is not None:
        return found
    links = _NVLINK.match(level)
    if links is None:
        raise InvalidRequest(f"{level!r:.30} is no distance between GPUs: there are X, {LEVELS}")
    return 20 - min(int(links[1]), 18)


@dataclass(frozen=True, slots=True)
class Topology:
    """``links[i][j]`` is the level between the i-th and the j-th GPU of a node, ``nic_links[i][k]`` between the i-th
    GPU and the k-th NIC, in the order in which the node lists them. Either may be empty: not known.
    """

    links: tuple[tuple[str, ...], ...] = ()
    nic_links: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for rows in (self.links, self.nic_links):
            for row in rows:
                for level in row:
                    cost(level)
        for at, row in enumerate(self.links):
            if len(row) != len(self.links):
                raise InvalidRequest(
                    f"row {at} of the links between GPUs has {len(row)} levels, not {len(self.links)} GPUs"
                )
        for at, row in enumerate(self.links):
            for other, level in enumerate(row):
                if (level == "X") != (at == other) or self.links[other][at] != level:
                    raise InvalidRequest(
                        f"the link of GPUs {at} and {other} is {level} one way and {self.links[other][at]} the other: "
                        f"write the same both ways, and X for a GPU and itself"
                    )

    def check(self, node_id: str, gpus: int, nics: int) -> None:
        """Raise InvalidRequest unless it is that of a node with so many GPUs and NICs."""
        if self.links and len(self.links) != gpus:
            raise InvalidRequest(f"the topology of node {node_id} has {len(self.links)} GPUs, and the node has {gpus}")
        if self.nic_links and (len(self.nic_links) != gpus or any(len(row) != nics for row in self.nic_links)):
            raise InvalidRequest(
                f"the NIC links of node {node_id} must be {gpus} rows (its GPUs) of {nics} levels (its NICs)"
            )
