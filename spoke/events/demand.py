"""What members of gangs usually need, learned from the log: how much CPU and memory for a GPU, and which shares.

The running sums change with every grant. What placement goes by, ``usual``, is taken from them when their number has
doubled, so that what is worked out from it stays good for long. Sums of long ago weigh less and less: they are halved
when ``MEMBERS_MAX`` members have been counted. All of it follows from the log, and is kept in snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spoke.events.model import GPU_MILLI, Resources, Slot

FIRST_AT = 4
"""After so many granted members something is known."""
MEMBERS_MAX = 1 << 16
MODELS_MAX = 64
"""Wishes for models are counted for so many different ones, the frequent ones."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What a GPU usually comes with: CPU (thousandths of a core) and memory (MiB); 0 if nothing is known.

    ``shares``: how often which share of a GPU (thousandths) was granted, the smallest first. ``models``: which part of
    the granted GPUs (millionths) went to gangs that are limited to these models.
    """

    cpu_milli: int = 0
    memory_mib: int = 0
    shares: tuple[tuple[int, int], ...] = ()
    models: tuple[tuple[tuple[str, ...], int], ...] = ()


@dataclass(slots=True)
class Demand:
    """Sums over the granted members that have GPUs or shares of them."""

    members: int = 0
    gpu_milli: int = 0
    cpu_milli: int = 0
    memory_mib: int = 0
    shares: dict[int, int] = field(default_factory=dict)
    """Share of a GPU (thousandths) -> how often it was granted."""
    shares_granted: int = 0
    models: dict[tuple[str, ...], int] = field(default_factory=dict)
    """The models that gangs were limited to, in order -> thousandths of GPUs granted to them."""
    usual: Usual = field(default_factory=Usual)
    next_at: int = FIRST_AT
    """At so many members ``usual`` is taken anew."""

    def learn(self, resources: Resources, gpu_models: tuple[str, ...], slots: tuple[Slot, ...]) -> None:
        """Count a granted gang."""
        before = self.gpu_milli
        if resources.is_share:
            self.shares_granted += len(slots)
            for slot in slots:
                self.gpu_milli += slot.gpu_milli
                self.shares[slot.gpu_milli] = self.shares.get(slot.gpu_milli, 0) + 1
        elif resources.gpu_count:
            self.gpu_milli += GPU_MILLI * resources.gpu_count * len(slots)
        else:
            return
        if gpu_models:
            self._learn_models(tuple(sorted(set(gpu_models))), self.gpu_milli - before)
        self.members += len(slots)
        self.cpu_milli += resources.cpu_milli * len(slots)
        self.memory_mib += (resources.memory_bytes >> 20) * len(slots)
        if self.members >= self.next_at:
            self._take_stock()

    def _learn_models(self, models: tuple[str, ...], milli: int) -> None:
        if models not in self.models and len(self.models) >= MODELS_MAX:
            del self.models[min(self.models, key=lambda known: (self.models[known], known))]
        self.models[models] = self.models.get(models, 0) + milli

    def _take_stock(self) -> None:
        per_gpu = [amount * GPU_MILLI // max(1, self.gpu_milli) for amount in (self.cpu_milli, self.memory_mib)]
        parts = ((models, milli * 1_000_000 // self.gpu_milli) for models, milli in sorted(self.models.items()))
        self.usual = Usual(per_gpu[0], per_gpu[1], tuple(sorted(self.shares.items())), tuple(parts))
        while self.members >= MEMBERS_MAX:
            self.members //= 2
            self.gpu_milli //= 2
            self.cpu_milli //= 2
            self.memory_mib //= 2
            self.shares_granted //= 2
            self.models = {models: milli // 2 for models, milli in self.models.items() if milli > 1}
            self.shares = {share: count // 2 for share, count in self.shares.items() if count > 1}
        self.next_at = 2 * self.members
