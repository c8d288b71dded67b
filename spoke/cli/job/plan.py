"""From a job to what is asked of the pool and what is launched in the gang."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from msgspec.structs import replace

from spoke.cli.job import schema
from spoke.cli.moments import parse_time
from spoke.errors import InvalidRequest
from spoke.events.model import GangSpec, Slot
from spoke.events.resources import Resources, parse_bytes
from spoke.events.rules import Group, Strategy
from spoke.events.supervision import UNLIMITED, ExitHook, HealthCheck, Restart, Supervision
from spoke.protocol.launch import Torchrun

if TYPE_CHECKING:
    from spoke.client.sync.gang import Gang
    from spoke.client.sync.handle import ActorHandle


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that makes sense. ``ask`` are the arguments of ``Client.gang_allocate``; commands and actors go by group,
    "" where there are no groups.
    """

    ask: Mapping[str, Any]
    commands: Mapping[str, Sequence[str]]
    actors: Mapping[str, str]
    args: Mapping[str, Mapping[str, Any]]
    env: Mapping[str, str]
    cwd: str
    supervision: Mapping[str, Supervision]
    torchrun: Torchrun | None

    @property
    def grace_s(self) -> float:
        """From SIGTERM to SIGKILL."""
        return float(self.ask["grace_s"])

    @property
    def spec(self) -> GangSpec:
        """What the pool would be asked for."""
        from spoke.client.spec import gang_spec, terms_of

        ask = dict(self.ask)
        ask.pop("timeout")
        terms = ("priority", "project", "expected_duration", "max_duration", "preemptible", "reservation")
        return gang_spec(terms=terms_of(*(ask.pop(name) for name in terms)), detached=False, **ask)

    @property
    def _care(self) -> Supervision | Mapping[str, Supervision]:
        return self.supervision.get("", self.supervision)

    def launch(self, gang: Gang) -> Future[list[ActorHandle]]:
        """Start everything."""

        def rank_id(slot: Slot) -> str:
            return f"rank-{slot.global_rank}"

        if self.actors:
            types = self.actors.get("", self.actors)
            return gang.launch(
                types,
                lambda slot: self.args[slot.group if self.args.keys() != {""} else ""],
                ids=rank_id,
                env=self.env,
                cwd=self.cwd,
                supervision=self._care,
            )
        argv = self.commands.get("", self.commands)
        return gang.launch_command(argv, env=self.env, cwd=self.cwd, supervision=self._care, torchrun=self.torchrun)


def plan_of(job: schema.JobFile) -> Plan:
    """What a job asks for; raises InvalidRequest."""
    num_nodes, min_nodes = _nodes(job)
    spans = ("expected_duration", "max_duration")
    timeout_s = None if job.timeout in (-1, "-1") else _seconds("timeout", job.timeout)
    ask: dict[str, Any] = {
        "num_nodes": num_nodes,
        "actors_per_node": job.actors_per_node,
        "resources": _resources(job),
        "strict_pack": job.strict_pack,
        "timeout": timeout_s,
        "on_failure": job.on_failure,
        "grace_s": _seconds("grace", job.grace),
        "gpu_models": tuple(job.gpu_model),
        "strategy": cast("Strategy | None", job.strategy),
        "where": job.where,
        "where_not": job.where_not,
        "min_gpu_memory": job.min_gpu_memory,
        "min_nodes": min_nodes,
        "groups": [_group(name, group) for name, group in job.groups.items()],
        **{name: getattr(job, name) for name in _AS_THEY_ARE},
        **{name: None if getattr(job, name) is None else _seconds(name, getattr(job, name)) for name in spans},
    }
    parts = job.groups if job.groups else {"": job}
    if job.groups and (job.command or job.actor):
        raise InvalidRequest("the job has groups, and a command or an actor beside them: write those into the groups")
    commands = {name: schema.words_of(part.command) for name, part in parts.items() if part.command}
    actors = {name: part.actor for name, part in parts.items() if part.actor}
    _check_parts(parts, commands, actors)
    torch = _torch(job)
    if torch is not None:
        if actors or len(commands) != 1:
            raise InvalidRequest(
                "torch runs one command at every rank: give the job one, and neither groups nor actors"
            )
        commands = {name: _python(words, torch) for name, words in commands.items()}
    care = {name: _care(part, job, torchrun=torch is not None) for name, part in parts.items()}
    restart = care[""].restart if torch is not None else None
    return Plan(
        ask=ask,
        commands=commands,
        actors=actors,
        args={name: part.args for name, part in parts.items()},
        env={name: str(value) for name, value in job.env.items()},
        cwd=os.getcwd() if job.cwd is None else job.cwd,
        supervision=care,
        torchrun=None
        if torch is None
        else Torchrun(job.name, torch.role, restart.max_restarts if restart is not None else 0),
    )


_AS_THEY_ARE = (
    "name",
    "near",
    "exclusive",
    "same",
    "prefer_same",
    "preferred_node",
    "gpu_ids",
    "priority",
    "project",
    "preemptible",
    "reservation",
)


def _check_parts(
    parts: Mapping[str, schema.Group], commands: Mapping[str, Sequence[str]], actors: Mapping[str, str]
) -> None:
    for name, part in parts.items():
        whose = f"the group {name}" if name else "the job"
        if (name in commands) == (name in actors):
            raise InvalidRequest(
                f"{whose} needs a command or an actor, and not both: `spoke run … -- COMMAND`, or in a file"
            )
        if part.args and name not in actors:
            raise InvalidRequest(f"{whose} has args, which only an actor takes: write them into the command")
    if commands and actors:
        raise InvalidRequest("some groups have commands and some have actors: a job has either in all of them")


def _nodes(part: schema.Group) -> tuple[int, int | None]:
    """How many nodes, and the fewest that will do: ``nodes`` is a number, or MIN:MAX."""
    if isinstance(part.nodes, int):
        return part.nodes, None
    least, colon, most = part.nodes.partition(":")
    if not all(text.isascii() and text.isdigit() for text in ((least, most) if colon else (least,))):
        raise InvalidRequest(f"nodes is a number, or MIN:MAX like 1:4, not {part.nodes!r:.50}")
    if not colon:
        return int(least), None
    if int(least) < 1 or int(least) > int(most):
        raise InvalidRequest(
            f"nodes {part.nodes} asks for at least {least} and at most {most}: write MIN:MAX from 1 on"
        )
    return int(most), int(least)


def _resources(part: schema.Group) -> Resources:
    gpus = part.gpus_per_actor
    return Resources(
        gpus=int(gpus) if float(gpus).is_integer() else gpus,
        cpus=part.cpus_per_actor,
        memory=part.memory_per_actor,
        gpu_memory=part.gpu_memory_per_actor,
        nics=part.nics_per_actor,
    )


def _group(name: str, group: schema.Group) -> Group:
    num_nodes, min_nodes = _nodes(group)
    return Group(
        name,
        num_nodes,
        group.actors_per_node,
        _resources(group),
        group.strict_pack,
        cast("Strategy | None", group.strategy),
        group.where,
        group.where_not,
        tuple(group.gpu_model),
        group.min_gpu_memory,
        min_nodes or 0,
    )


def _torch(job: schema.JobFile) -> schema.Torch | None:
    if isinstance(job.torch, schema.Torch):
        return job.torch
    return schema.Torch() if job.torch else None


def _python(words: Sequence[str], torch: schema.Torch) -> list[str]:
    if not torch.python:
        if torch.module:
            raise InvalidRequest("torch is to run a module, and without python: only one of these makes sense")
        return list(words)
    python = os.environ.get("PYTHON_EXEC", sys.executable)
    return [python, "-u", *(["-m"] if torch.module else []), *words]


def _care(part: schema.Group, job: schema.JobFile, *, torchrun: bool) -> Supervision:
    """How a group's members are looked after: as it says, and where it says nothing, as the job does."""
    plain = schema.Group()
    own = {name: getattr(part, name) for name in _CARE if getattr(part, name) != getattr(plain, name)}
    asked = {name: getattr(job, name) for name in _CARE} | own
    return Supervision(
        _restart(asked["restart"], torchrun=torchrun),
        _seconds("start_timeout", asked["start_timeout"]),
        _health(asked["health"]),
        _hook(asked["exit_hook"]),
        _limits(asked["limits"]),
    )


_CARE = ("restart", "start_timeout", "health", "exit_hook", "limits")


def _restart(asked: str | schema.Restart, *, torchrun: bool) -> Restart | None:
    if isinstance(asked, str):
        if asked == "never":
            return None
        policy = cast("Literal['on_failure', 'gang']", asked)
        asked = _as_torchrun(3) if torchrun and policy == "gang" else schema.Restart(policy=policy)
    if asked.policy == "never":
        return None
    if torchrun and asked.policy != "gang":
        raise InvalidRequest(f"torch restarts its workers together: restart is gang or never, not {asked.policy}")
    return Restart(
        asked.policy,
        asked.max_restarts,
        _seconds("restart.backoff", asked.backoff),
        _seconds("restart.backoff_max", asked.backoff_max),
        _seconds("restart.window", asked.window),
    )


def _as_torchrun(max_restarts: int) -> schema.Restart:
    """Restarts as torchrun has them: at once, and counted for ever."""
    return schema.Restart(policy="gang", max_restarts=max_restarts, backoff=0, backoff_max=0, window=0)


def restart_of(policy: str | None, max_restarts: int | None, job: schema.JobFile) -> schema.JobFile:
    """The job with the restarts that the options name, if they do."""
    if policy is None and max_restarts is None:
        return job
    known = job.restart if isinstance(job.restart, schema.Restart) else None
    if job.torch and policy in (None, "gang"):
        known = known or _as_torchrun(3)
    if policy is None and known is None and job.restart == "never":
        raise InvalidRequest("--max-restarts was given without a policy: add --restart on_failure or --restart gang")
    known = known or schema.Restart(policy=job.restart if isinstance(job.restart, str) else "on_failure")
    changes: dict[str, Any] = {} if max_restarts is None else {"max_restarts": max_restarts}
    if policy is not None:
        if policy not in ("never", "on_failure", "gang"):
            raise InvalidRequest(f"--restart is never, on_failure or gang, not {policy!r:.50}")
        changes["policy"] = policy
    return replace(job, restart=replace(known, **changes))


def _health(asked: schema.Health | None) -> HealthCheck | None:
    if asked is None:
        return None
    words = schema.words_of(asked.command)
    return HealthCheck(
        _seconds("health.interval", asked.interval), _seconds("health.timeout", asked.timeout), asked.failures, words
    )


def _hook(asked: schema.Command | schema.Hook | None) -> ExitHook | None:
    if asked is None:
        return None
    if isinstance(asked, schema.Hook):
        return ExitHook(schema.words_of(asked.command), _seconds("exit_hook.timeout", asked.timeout))
    return ExitHook(schema.words_of(asked))


def _limits(limits: Mapping[str, schema.Size]) -> dict[str, int]:
    return {name: UNLIMITED if value == "unlimited" else parse_bytes(value) for name, value in limits.items()}


def _seconds(what: str, span: schema.Span) -> float:
    try:
        seconds = parse_time(span) if isinstance(span, str) else float(span)
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error}") from error
    if not seconds >= 0:
        raise InvalidRequest(f"{what} is a time span from 0 on, not {span!r}")
    return seconds
