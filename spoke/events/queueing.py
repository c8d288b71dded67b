"""How a pool's queue is ordered and shared out: its policy, the projects' quotas, reservations, and what projects use.

All numbers are integers: GPUs and CPUs in thousandths, memory in bytes, times in milliseconds. So sums are exact, and
the same log gives the same shares everywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import isqrt
from typing import Literal

from spoke.errors import InvalidRequest
from spoke.events.model import GPU_MILLI, GangSpec, Slot, check_name
from spoke.events.terms import PRIORITY_MAX

Order = Literal["fifo", "priority", "fair"]
ORDERS: tuple[Order, ...] = ("fifo", "priority", "fair")
Amounts = tuple[int, int, int, int]
"""GPUs (thousandths), CPUs (thousandths), memory (bytes), and nodes (how many of them have a part of it)."""
NOTHING: Amounts = (0, 0, 0, 0)
RESOURCES = ("GPUs", "CPUs", "memory", "nodes")
WEIGHT_MAX = 1_000
DEPTH_MAX = 1_000
YEAR_MS = 365 * 24 * 3600 * 1000
QUOTAS_MAX = 10_000
ACCOUNTS_MAX = 10_000


def _check(what: str, value: int, at_least: int, at_most: int) -> None:
    if type(value) is not int or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be a whole number from {at_least} to {at_most}, not {value!r}")


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How the queue of a pool is ordered.

    ``order``: ``fifo`` (first come, first served), ``priority`` (higher first, then first come), or ``fair``: the
    project with the smallest dominant share first (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011), of what it
    has now plus what it had of late, by its weight; what was is worth half after ``half_life_ms``.

    ``backfill``: a later gang may start first if that delays no planned start; ``depth`` gangs are looked at.
    ``preempt``: a gang may take the place of preemptible tickets of lower priority, and of those that borrow its
    project's quota. ``notice_ms`` is the time between the notice and the release, of a preemption and of a
    ``max_duration``.
    """

    order: Order = "priority"
    backfill: bool = True
    preempt: bool = True
    half_life_ms: int = 24 * 3600 * 1000
    notice_ms: int = 30_000
    depth: int = 32

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InvalidRequest(f"the queue's order is one of {', '.join(ORDERS)}, not {self.order!r}")
        _check("half_life_ms", self.half_life_ms, 1_000, YEAR_MS)
        _check("notice_ms", self.notice_ms, 0, 24 * 3600 * 1000)
        _check("depth", self.depth, 1, DEPTH_MAX)

    @property
    def name(self) -> str:
        """The order's name and version, as events record it."""
        return f"{self.order}/1"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project may have by right (None: no limit), and its weight in a fair order.

    ``borrow``: it may have more while that is idle; such tickets can be preempted by projects within their quota.
    ``priority_max`` is the highest priority that its gangs may ask for.
    """

    project: str
    gpu_milli: int | None = None
    cpu_milli: int | None = None
    memory: int | None = None
    nodes: int | None = None
    borrow: bool = True
    weight: int = 1
    priority_max: int | None = None

    def __post_init__(self) -> None:
        if self.project != "*":
            check_name("the project", self.project)
        _check("weight", self.weight, 1, WEIGHT_MAX)
        for name, limit in (("GPUs", self.gpu_milli), ("CPUs", self.cpu_milli), ("memory", self.memory)):
            if limit is not None:
                _check(f"the quota of {name}", limit, 0, 2**60)
        if self.nodes is not None:
            _check("the quota of nodes", self.nodes, 0, 2**40)
        if self.priority_max is not None:
            _check("the highest priority", self.priority_max, -PRIORITY_MAX, PRIORITY_MAX)

    @property
    def limits(self) -> tuple[int | None, ...]:
        """The limits in the order of ``Amounts``."""
        return (self.gpu_milli, self.cpu_milli, self.memory, self.nodes)

    def exceeded(self, amounts: Amounts) -> str:
        """The first resource of which ``amounts`` is more than the quota; empty if it is within."""
        for name, limit, amount in zip(RESOURCES, self.limits, amounts, strict=True):
            if limit is not None and amount > limit:
                return name
        return ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Nodes that are kept for some gangs from ``start_ms`` until ``end_ms`` (server time).

    Gangs that ask for it are placed on ``nodes``; others get no places there that they would hold into that time.
    ``project``: only its gangs may use it (empty: any that names it).
    """

    reservation_id: str
    nodes: tuple[str, ...]
    gpus: int
    start_ms: int
    end_ms: int
    project: str = ""
    by: str = ""
    name: str = ""


# --- usage that decays --------------------------------------------------------------------------------------------

_ONE = 1 << 64
_FRACTION_BITS = 16
AVERAGE_BITS = 16
"""Averages are kept in 65,536ths, so that slow decay is not rounded away."""


def _halvings(bits: int) -> list[int]:
    """2**-(2**-k) for k = 1..bits, in 64-bit fixed point: square roots of square roots of a half."""
    found, value = [], _ONE >> 1
    for _ in range(bits):
        value = isqrt(value << 64)
        found.append(value)
    return found


def _powers(roots: list[int]) -> list[int]:
    """2**-(i / 2**len) for every i below 2**len, from the roots for each bit, the highest bit first."""
    table = [_ONE]
    for root in reversed(roots):
        table += [value * root >> 64 for value in table]
    return table


_ROOTS = _halvings(_FRACTION_BITS)
_HIGH = _powers(_ROOTS[:8])
_LOW = _powers(_ROOTS[8:])


def decay(elapsed_ms: int, half_life_ms: int) -> int:
    """2**-(elapsed / half-life), in 64-bit fixed point.

    >>> decay(0, 1000) == 1 << 64, decay(1000, 1000) == 1 << 63
    (True, True)
    """
    whole, rest = divmod(max(0, elapsed_ms), half_life_ms)
    if whole >= 64:
        return 0
    fraction = (rest << _FRACTION_BITS) // half_life_ms
    return (_HIGH[fraction >> 8] * _LOW[fraction & 255] >> 64) >> whole


@dataclass(slots=True)
class Account:
    """What a project has now (``held``), and the decaying average of what it had (``average``, in 65,536ths)."""

    held: Amounts = NOTHING
    average: Amounts = NOTHING
    at_ms: int = 0

    def averages_at(self, now_ms: int, half_life_ms: int) -> Amounts:
        """The averages at a later time, with nothing changed in between."""
        if now_ms <= self.at_ms or (self.average == NOTHING and self.held == NOTHING):
            return self.average
        keep = decay(now_ms - self.at_ms, half_life_ms)
        gain = _ONE - keep
        a, h = self.average, self.held
        return (
            a[0] * keep + (h[0] << AVERAGE_BITS) * gain >> 64,
            a[1] * keep + (h[1] << AVERAGE_BITS) * gain >> 64,
            a[2] * keep + (h[2] << AVERAGE_BITS) * gain >> 64,
            a[3] * keep + (h[3] << AVERAGE_BITS) * gain >> 64,
        )

    def change(self, amounts: Amounts, sign: int, now_ms: int, half_life_ms: int) -> None:
        """More (``sign`` 1) or less (-1) is held from now on."""
        self.average = self.averages_at(now_ms, half_life_ms)
        self.at_ms = max(self.at_ms, now_ms)
        h = self.held
        self.held = (
            h[0] + sign * amounts[0],
            h[1] + sign * amounts[1],
            h[2] + sign * amounts[2],
            h[3] + sign * amounts[3],
        )


def amounts_of(spec: GangSpec, slots: Collection[Slot]) -> Amounts:
    """What these slots of a gang are."""
    gpus, nodes = 0, set[str]()
    for slot in slots:
        gpus += slot.gpu_milli or GPU_MILLI * len(slot.gpu_ids)
        nodes.add(slot.node_id)
    if spec.groups:
        needs = [spec.resources_of(slot.group) for slot in slots]
        return gpus, sum(need.cpu_milli for need in needs), sum(need.memory_bytes for need in needs), len(nodes)
    need, count = spec.resources, len(slots)
    return gpus, need.cpu_milli * count, need.memory_bytes * count, len(nodes)


def demand_of(spec: GangSpec) -> Amounts:
    """What a gang will be once it has its places: at most this, for shares by GPU memory and for dense gangs."""
    if spec.groups:
        gpus = cpus = memory = nodes = 0
        for part in spec.parts:
            more = demand_of(part)
            gpus, cpus, memory, nodes = gpus + more[0], cpus + more[1], memory + more[2], nodes + more[3]
        return gpus, cpus, memory, nodes
    resources, size = spec.resources, spec.size
    milli = (resources.gpu_milli or GPU_MILLI) if resources.is_share else GPU_MILLI * resources.gpu_count
    return milli * size, resources.cpu_milli * size, resources.memory_bytes * size, spec.num_nodes


def plus(one: Amounts, other: Amounts) -> Amounts:
    """The sum."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


@dataclass(slots=True)
class Queueing:
    """The part of a pool's state that orders its queue."""

    policy: QueuePolicy = field(default_factory=QueuePolicy)
    quotas: dict[str, Quota] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    next_reservation: int = 1

    def quota(self, project: str) -> Quota | None:
        """The project's quota, else that of all others (``*``); None if it has none."""
        return self.quotas.get(project) or self.quotas.get("*")

    def held(self, project: str) -> Amounts:
        """What the project has now."""
        account = self.accounts.get(project)
        return NOTHING if account is None else account.held

    def charge(self, project: str, amounts: Amounts, sign: int, now_ms: int) -> None:
        """Book that a project has more or less."""
        account = self.accounts.get(project)
        if account is None:
            self._make_room()
            account = self.accounts[project] = Account(at_ms=now_ms)
        account.change(amounts, sign, now_ms, self.policy.half_life_ms)

    def settle(self, now_ms: int) -> None:
        """Bring all averages up to now: before the half-life changes."""
        for account in self.accounts.values():
            account.change(NOTHING, 1, now_ms, self.policy.half_life_ms)

    def _make_room(self) -> None:
        """Where there are too many, forget those without tickets whose use changed longest ago."""
        if len(self.accounts) < ACCOUNTS_MAX:
            return
        idle = [name for name, account in self.accounts.items() if account.held == NOTHING]
        idle.sort(key=lambda name: (self.accounts[name].at_ms, name))
        for name in idle[: max(1, len(idle) // 10)]:
            del self.accounts[name]


def project_of(named: str, of_client: str, user: str, client_id: str) -> str:
    """The project that a ticket counts for: the one it names, else its client's, else the user, else the client."""
    return named or of_client or user or client_id
