"""What goes into a launch request: members, and the opaque blobs that only the actors' processes read.

A plan is made, and everything in it checked, before any ticket is touched. Called with the slots and the ticket's
secret it gives the members and the packed blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from spoke.errors import InvalidRequest, LimitExceeded, RankOutOfRange
from spoke.events.model import ActorSpec, Member, Slot
from spoke.events.supervision import NONE, Supervision
from spoke.protocol.launch import LaunchBlob, Torchrun, encode_blob, pack_blobs
from spoke.protocol.requests import ARGS_BYTES_MAX
from spoke.transport import pack

ARGV_BYTES_MAX = 1 << 20
_RANK_MAX = 1 << 31

Args = Mapping[str, Any] | Callable[[Slot], Mapping[str, Any]] | None
Types = str | Mapping[str, str]
"""A registered type, or one for each group of a mixed gang."""
Commands = Sequence[str] | Mapping[str, Sequence[str]]
"""A command's words, or those for each group of a mixed gang."""
Care = Supervision | Mapping[str, Supervision] | None
"""How actors are looked after; in a mixed gang it may be said for each group."""
Ids = Sequence[str] | Callable[[Slot], str] | None
Env = Mapping[str, str] | None
Parts = tuple[tuple[Member, ...], bytes]


class Plan(Protocol):
    """A checked launch, for slots that are known later."""

    @property
    def spec(self) -> ActorSpec:
        """What to run."""

    @property
    def by_group(self) -> Mapping[str, ActorSpec]:
        """What to run in each group, if it is not the same in all."""

    def __call__(self, slots: Sequence[Slot], secret: bytes, log_key: bytes = b"") -> Parts:
        """The members and the packed blobs."""


def check_rank(rank: int) -> int:
    """The rank; InvalidRequest if it is no whole number, RankOutOfRange if no gang can have it."""
    if type(rank) is not int:
        raise InvalidRequest(f"a rank is a whole number, not {rank!r}")
    if not 0 <= rank < _RANK_MAX:
        raise RankOutOfRange(f"rank {rank} was asked for; a gang has ranks from 0 to its size - 1")
    return rank


@dataclass(frozen=True, slots=True)
class Way:
    """How actors are run: the environment's additions, the working directory, how their agents look after them.

    ``torchrun``: commands are run as torchrun would.
    """

    env: Env = None
    cwd: str | None = None
    supervision: Care = None
    torchrun: Torchrun | None = None

    def spec(self, type_name: str = "", argv: tuple[str, ...] = (), group: str = "") -> ActorSpec:
        """What to run; raises InvalidRequest."""
        care = self.supervision
        if isinstance(care, Mapping):
            care = care.get(group)
        if care is not None and not isinstance(care, Supervision):
            raise InvalidRequest(f"supervision must be a spoke.Supervision, or one for each group, not {care!r:.100}")
        return ActorSpec(type_name, argv, _checked_text("cwd", self.cwd or ""), None if care == NONE else care)


def actor_plan(rank: int, type_name: str, actor_id: str, args: Mapping[str, Any] | None, way: Way) -> Plan:
    """One actor of a registered type at one rank."""
    if type(rank) is not int:
        raise InvalidRequest(f"a rank is a whole number, not {rank!r}")
    member = Member(rank, _checked_text("the actor id", actor_id))
    return _OneActor(way.spec(_checked_text("the actor type", type_name)), member, _pack_args(args), _env(way.env))


def gang_plan(types: Types, args: Args, ids: Ids, way: Way) -> Plan:
    """One actor of a registered type at every rank; with a type for each group, at the ranks of those."""
    packed = args if callable(args) else _pack_args(args)
    if not isinstance(types, Mapping):
        return _WholeGang(way.spec(_checked_text("the actor type", types)), packed, ids, _env(way.env))
    by_group = {
        _checked_text("a group's name", group): way.spec(_checked_text("the actor type", name), group=group)
        for group, name in types.items()
    }
    if not by_group:
        raise InvalidRequest("a launch by groups names at least one group and its actor type")
    return _WholeGang(next(iter(by_group.values())), packed, ids, _env(way.env), by_group)


def command_plan(argv: Commands, way: Way) -> Plan:
    """A command at every rank; with a command for each group, at the ranks of those."""
    if way.torchrun is not None and not isinstance(way.torchrun, Torchrun):
        raise InvalidRequest(f"torchrun must be a spoke.Torchrun, not {way.torchrun!r:.100}")
    if not isinstance(argv, Mapping):
        by_group: dict[str, ActorSpec] = {}
        spec = way.spec(argv=_checked_words(argv))
    else:
        by_group = {
            _checked_text("a group's name", group): way.spec(argv=_checked_words(w), group=group)
            for group, w in argv.items()
        }
        if not by_group:
            raise InvalidRequest("a launch by groups names at least one group and its command")
        spec = next(iter(by_group.values()))
    return _WholeGang(spec, b"", lambda slot: f"rank-{slot.global_rank}", _env(way.env), by_group, way.torchrun)


def _checked_words(argv: Sequence[str]) -> tuple[str, ...]:
    if isinstance(argv, str) or not argv or not all(isinstance(word, str) for word in argv):
        raise InvalidRequest(f"a command is a list of words, like ['python', 'train.py'], not {str(argv)[:200]!r}")
    for word in argv:
        _checked_text("a word of the command", word)
    if not argv[0]:
        raise InvalidRequest("the command's first word, the program, is empty")
    if sum(map(len, argv)) > ARGV_BYTES_MAX:
        raise InvalidRequest(f"the command is longer than {ARGV_BYTES_MAX} characters: put its input into a file")
    return tuple(argv)


def with_variable(plan: Plan, name: str, value: str) -> Plan:
    """The same launch with one more variable in the actors' environment, unless it has it already."""
    assert isinstance(plan, (_OneActor, _WholeGang))
    return replace(plan, env={name: value, **plan.env})


@dataclass(frozen=True, slots=True)
class _OneActor:
    spec: ActorSpec
    member: Member
    args: bytes
    env: dict[str, str]
    by_group: Mapping[str, ActorSpec] = field(default_factory=dict)

    def __call__(self, slots: Sequence[Slot], secret: bytes, log_key: bytes = b"") -> Parts:
        if not 0 <= self.member.rank < len(slots):
            raise RankOutOfRange(f"rank {self.member.rank} was asked for; the gang has ranks 0 to {len(slots) - 1}")
        return (self.member,), _pack_blobs([encode_blob(LaunchBlob(secret, self.args, self.env, log_key))])


@dataclass(frozen=True, slots=True)
class _WholeGang:
    spec: ActorSpec
    args: Any
    ids: Ids
    env: dict[str, str]
    by_group: Mapping[str, ActorSpec] = field(default_factory=dict)
    torchrun: Torchrun | None = None

    def __call__(self, slots: Sequence[Slot], secret: bytes, log_key: bytes = b"") -> Parts:
        if self.by_group:
            there = {slot.group for slot in slots}
            unknown = [group for group in self.by_group if group not in there]
            if unknown:
                known = ", ".join(sorted(there - {""})) or "none"
                raise InvalidRequest(f"the launch names the group {unknown[0]!r}; the gang's groups are: {known}")
            slots = [slot for slot in slots if slot.group in self.by_group]
        if callable(self.args):
            blobs = [encode_blob(LaunchBlob(secret, _pack_args(self.args(slot)), self.env, log_key)) for slot in slots]
        else:
            blobs = [encode_blob(LaunchBlob(secret, self.args, self.env, log_key, self.torchrun))]
        return self._members(slots), _pack_blobs(blobs)

    def _members(self, slots: Sequence[Slot]) -> tuple[Member, ...]:
        ids = self.ids
        if ids is None:
            return tuple(
                Member(slot.global_rank, f"{self.by_group.get(slot.group, self.spec).type_name}-{slot.global_rank}")
                for slot in slots
            )
        if not callable(ids) and (isinstance(ids, str) or not isinstance(ids, Sequence)):
            raise InvalidRequest(f"ids must be a list of actor ids, or a function of the slot, not {ids!r:.100}")
        found = [ids(slot) for slot in slots] if callable(ids) else list(ids)
        if len(found) != len(slots):
            raise InvalidRequest(f"{len(found)} actor ids were given for {len(slots)} ranks: give one for each")
        return tuple(
            Member(slot.global_rank, _checked_text("the actor id", actor_id))
            for slot, actor_id in zip(slots, found, strict=True)
        )


def _pack_args(args: Mapping[str, Any] | None) -> bytes:
    if args is None:
        args = {}
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise InvalidRequest(f"args must be a dict with names as keys, or None, not {type(args).__name__}")
    return pack(dict(args))


def _pack_blobs(blobs: list[bytes]) -> bytes:
    packed = pack_blobs(tuple(blobs))
    if len(packed) > ARGS_BYTES_MAX:
        raise LimitExceeded(
            f"the arguments of this launch are {len(packed)} bytes; at most {ARGS_BYTES_MAX} are allowed: pass large "
            f"data in a call, or the path of a file"
        )
    return packed


def _env(env: Env) -> dict[str, str]:
    if env is not None and not isinstance(env, Mapping):
        raise InvalidRequest(f'env must be a dict of variables, like {{"MODE": "fast"}}, not {env!r:.100}')
    found = dict(env or {})
    for name, value in found.items():
        _checked_text("an environment variable's name", name)
        _checked_text(f"the environment variable {name!r}", value)
        if not name or "=" in name:
            raise InvalidRequest(f"{name!r} cannot be the name of an environment variable")
    return found


def _checked_text(what: str, value: object) -> str:
    """Text that a process can be given and JSON can hold."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidRequest(f"{what} contains a NUL character, which no process can be given")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} is not valid text: {error}") from error
    return value
