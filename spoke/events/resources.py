"""What one actor needs of a node: GPUs or a share of one, CPU, memory, NICs; and sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spoke.errors import InvalidRequest

GPUS_PER_NODE_MAX = 1_024
NICS_PER_NODE_MAX = 256
GPU_MILLI = 1_000
"""A whole GPU, in the thousandths in which shares are counted."""


def check_count(what: str, value: int, at_least: int, at_most: int) -> None:
    """Raise InvalidRequest for what is no whole number in this range."""
    if type(value) is not int or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be a whole number from {at_least} to {at_most}, not {value!r}")


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
    ``gpus`` that is its share, beside a fraction the share is the larger of the two. ``nics`` is how many RDMA ports it
    has that no other actor with ``nics`` has; with 0 it has none of its own, and shares what its node has.

    >>> spoke.Resources(gpus=2, cpus=1.5, memory="1GiB").memory
    1073741824
    >>> spoke.Resources(gpus=0.25).gpu_milli, spoke.Resources(gpu_memory="10GiB").share_of(40 << 30)
    (250, 250)
    """

    gpus: int | float = 0
    cpus: float = 0.0
    memory: int | str = 0
    gpu_memory: int | str = 0
    nics: int = 0

    def __post_init__(self) -> None:
        for name in ("memory", "gpu_memory"):
            size = getattr(self, name)
            if isinstance(size, str):
                object.__setattr__(self, name, parse_bytes(size))
            check_count(name, getattr(self, name), 0, 2**60)
        if type(self.gpus) is not int:
            object.__setattr__(self, "gpus", _gpus(self.gpus))
        check_count("gpus", self.gpu_count, 0, GPUS_PER_NODE_MAX)
        check_count("nics", self.nics, 0, NICS_PER_NODE_MAX)
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
        """Whether the actor has a share of one GPU, instead of whole ones.

        >>> spoke.Resources(gpus=0.5).is_share, spoke.Resources(gpus=2).is_share
        (True, False)
        """
        return type(self.gpus) is float or (self.gpus == 0 and self.gpu_memory != 0)

    @property
    def gpu_count(self) -> int:
        """The number of whole GPUs; 0 for a share.

        >>> spoke.Resources(gpus=2).gpu_count, spoke.Resources(gpus=0.5).gpu_count
        (2, 0)
        """
        return self.gpus if type(self.gpus) is int else 0

    @property
    def gpu_milli(self) -> int:
        """The share that ``gpus`` asks for, in thousandths of a GPU; 0 if the share follows from ``gpu_memory``.

        >>> spoke.Resources(gpus=0.5).gpu_milli
        500
        """
        return round(self.gpus * GPU_MILLI) if type(self.gpus) is float else 0

    def share_of(self, gpu_memory: int) -> int:
        """The share of a GPU that has so much memory (bytes), in thousandths; 0 if the need does not go into it.

        >>> spoke.Resources(gpu_memory="10GiB").share_of(80 << 30)
        125
        """
        wanted = int(self.gpu_memory)
        if wanted > gpu_memory:
            return 0
        return max(self.gpu_milli, -(-wanted * GPU_MILLI // gpu_memory)) if wanted else self.gpu_milli

    @property
    def cpu_milli(self) -> int:
        """The CPU need in thousandths of a core: the state counts in integers, so that sums are exact.

        >>> spoke.Resources(cpus=1.5).cpu_milli
        1500
        """
        return round(self.cpus * 1000)

    @property
    def memory_bytes(self) -> int:
        """The memory need in bytes.

        >>> spoke.Resources(memory="1GiB").memory_bytes
        1073741824
        """
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
