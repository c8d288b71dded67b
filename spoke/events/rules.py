"""Where a gang may be, and where it would rather be: strategies, labels, neighbours; and the groups of a mixed gang."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from spoke.errors import InvalidRequest
from spoke.events.names import NAME_LENGTH_MAX, check_name
from spoke.events.resources import Resources, check_count, parse_bytes

Strategy = Literal["pack", "spread", "strict_pack", "strict_spread"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
Labels = Mapping[str, str | Sequence[str]]
"""Label key -> a value, or several of which any will do; ``"*"`` stands for every value."""

ANY = "*"
DOMAINS = ("rack", "block", "zone")
"""The labels that say where a node stands, the narrowest first."""
SELECTORS_MAX = 64
LABELS_MAX = 64
LABEL_VALUE_MAX = 4096
"""Room for a path: the agent tells by a label where its logs are."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a gang asks of the nodes themselves.

    ``where``: a node must have these labels; ``where_not``: it must have none of these. ``min_gpu_memory`` (bytes, or
    text): all its GPUs have as much. ``near`` is a node or a ticket beside which it is placed if it can.
    ``exclusive``: no other ticket has anything on its nodes, as long as it lives. ``same``: all its nodes have one
    value of this label; ``prefer_same``: if they can (None: what ``DOMAINS`` say; empty: it does not matter).
    """

    strategy: Strategy = "pack"
    where: Labels = field(default_factory=dict, hash=False)
    where_not: Labels = field(default_factory=dict, hash=False)
    min_gpu_memory: int | str = 0
    near: str = ""
    exclusive: bool = False
    same: str = ""
    prefer_same: str | None = None

    def __post_init__(self) -> None:
        _check_strategy(self.strategy)
        _normalize(self)
        if self.near != "":
            check_name("near (a node or a ticket)", self.near)
        for what, key in (("same", self.same), ("prefer_same", self.prefer_same)):
            if key is not None and key != "":
                _check_key(what, key)
        if self.same and self.prefer_same and self.same != self.prefer_same:
            raise InvalidRequest(
                f"same={self.same!r} requires one label and prefer_same={self.prefer_same!r} prefers another: give one"
            )

    @property
    def gpu_memory_min(self) -> int:
        """``min_gpu_memory`` in bytes."""
        return int(self.min_gpu_memory)


@dataclass(frozen=True, slots=True)
class Group:
    """Members of a mixed gang that are alike: ``num_nodes`` x ``actors_per_node`` actors with ``resources`` each.

    The options mean what they mean for a gang (``Client.gang_allocate``), for these members. ``strict_pack`` None:
    True, unless a ``strategy`` is given. ``min_nodes``: it may get fewer nodes, down to these (0: ``num_nodes``).

    >>> head = spoke.Group("controller", resources=spoke.Resources(cpus=2))
    >>> rest = spoke.Group("worker", num_nodes=2, actors_per_node=2, resources=spoke.Resources(gpus=1))
    >>> len(client.gang_allocate(groups=[head, rest]).result())
    5
    """

    name: str
    num_nodes: int = 1
    actors_per_node: int = 1
    resources: Resources = field(default_factory=Resources)
    strict_pack: bool | None = None
    strategy: Strategy | None = None
    where: Labels = field(default_factory=dict, hash=False)
    where_not: Labels = field(default_factory=dict, hash=False)
    gpu_models: Sequence[str] = ()
    min_gpu_memory: int | str = 0
    min_nodes: int = 0

    def __post_init__(self) -> None:
        check_name("a group's name", self.name)
        check_count(f"num_nodes of group {self.name}", self.num_nodes, 1, 16_384)
        check_count(f"actors_per_node of group {self.name}", self.actors_per_node, 1, 16_384)
        check_count(f"min_nodes of group {self.name}", self.min_nodes, 0, self.num_nodes)
        if not isinstance(self.resources, Resources):
            raise InvalidRequest(f"the resources of group {self.name} must be Resources, not {self.resources!r}")
        if self.strict_pack is not None and type(self.strict_pack) is not bool:
            raise InvalidRequest(
                f"strict_pack of group {self.name} must be True or False, not {self.strict_pack!r:.100}"
            )
        if self.strategy is not None:
            _check_strategy(self.strategy)
        _normalize(self)
        check_texts(f"gpu_models of group {self.name}", self.gpu_models, "H100")
        object.__setattr__(self, "gpu_models", tuple(self.gpu_models))

    @property
    def size(self) -> int:
        """The number of its actors, if it gets all its nodes.

        >>> spoke.Group("worker", num_nodes=2, actors_per_node=4).size
        8
        """
        return self.num_nodes * self.actors_per_node

    @property
    def shaped(self) -> bool:
        """Whether its actors keep together by node.

        >>> spoke.Group("worker").shaped, spoke.Group("worker", strategy="spread").shaped
        (True, False)
        """
        return self.strategy is None if self.strict_pack is None else self.strict_pack


def rules_of(rules: Rules) -> Rules | None:
    """The rules if they ask for anything; else None, which is what the log says of most gangs."""
    return None if rules == NO_RULES else rules


def matches(labels: Mapping[str, str], key: str, wanted: str | Sequence[str]) -> bool:
    """Whether a node's labels have one of the wanted values."""
    value = labels.get(key)
    return value is not None and (value in wanted or ANY in wanted)


def _normalize(rules: Rules | Group) -> None:
    for what in ("where", "where_not"):
        object.__setattr__(rules, what, _selector(what, getattr(rules, what)))
    wanted = rules.min_gpu_memory
    size = parse_bytes(wanted) if isinstance(wanted, str) else wanted
    check_count("min_gpu_memory", size, 0, 2**60)
    object.__setattr__(rules, "min_gpu_memory", size)


def _selector(what: str, labels: Labels) -> dict[str, tuple[str, ...]]:
    if not isinstance(labels, Mapping) or len(labels) > SELECTORS_MAX:
        raise InvalidRequest(f'{what} must be a dict of labels, at most {SELECTORS_MAX}, like {{"rack": "r1"}}')
    found = {}
    for key, value in sorted(labels.items()):
        _check_key(what, key)
        values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Collection) else ()
        if not values or len(values) > SELECTORS_MAX or not all(isinstance(v, str) for v in values):
            raise InvalidRequest(
                f"{what} gives the label {key!r} the value {value!r:.100}: give text, or a list of texts"
            )
        found[key] = values
    return found


def check_texts(what: str, values: object, example: str) -> None:
    """Raise InvalidRequest for what is no list of texts; one text is none, though Python would take its letters."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise InvalidRequest(f'{what} must be a list of texts, like ["{example}"], not {values!r:.100}')


def check_labels(what: str, labels: Mapping[str, str]) -> None:
    """Raise InvalidRequest for labels that a node may not have; ``what`` says whose they are."""
    if len(labels) > LABELS_MAX:
        raise InvalidRequest(f"{what} gives {len(labels)} labels: a node has at most {LABELS_MAX}")
    for key, value in labels.items():
        _check_key(what, key)
        if len(value) > LABEL_VALUE_MAX or not value.isprintable() or value == ANY:
            raise InvalidRequest(
                f"{what} gives the label {key} the value {value!r:.100}: a value is printable text of at most "
                f'{LABEL_VALUE_MAX} characters, and not "{ANY}", by which gangs ask for every value'
            )


def _check_key(what: str, key: object) -> None:
    text = key if isinstance(key, str) and len(key) <= NAME_LENGTH_MAX else ""
    if not text or not text.isprintable() or "=" in text or " " in text:
        raise InvalidRequest(
            f"{what} names the label {key!r:.100}: a label's key is printable text of at most {NAME_LENGTH_MAX} "
            'characters without "=" and spaces, like rack'
        )


def _check_strategy(strategy: object) -> None:
    if strategy not in STRATEGIES:
        raise InvalidRequest(f"the strategy {strategy!r:.50} was asked for; there are {', '.join(STRATEGIES)}")


NO_RULES = Rules()
