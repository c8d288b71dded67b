"""The job that ``spoke run`` is asked for: what stands in its file, and before that what the options say."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer
from msgspec.structs import replace

from spoke.cli.job import schema
from spoke.cli.job.plan import restart_of
from spoke.cli.options import parse_pairs
from spoke.errors import InvalidRequest

_RENAMED = {"limit": "limits"}
_PAIRS = ("env", "limit")
_LABELS = ("where", "where_not")


def job_of(ctx: typer.Context, command: list[str]) -> schema.JobFile:
    """The job: what stands in its file, and before that what the options say. Raises InvalidRequest."""
    path = (ctx.obj or {}).get("job", "")
    if not path and not command:
        raise typer.BadParameter("name what to run at every rank: a command behind --, or a job file")
    job = schema.read_job(path) if path else schema.JobFile()
    given = {
        name: value
        for name, value in ctx.params.items()
        if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    if not re.fullmatch(r"[0-9]+(:[0-9]+)?", ctx.params["nodes"]):
        raise typer.BadParameter(f"--nodes {ctx.params['nodes']!r}: write a number, or MIN:MAX like 1:4")
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name in _PAIRS:
            field = _RENAMED.get(name, name)
            changes[field] = {**getattr(job, field), **parse_pairs(f"--{name}", value)}
        elif name in _LABELS:
            changes[name] = parse_labels(f"--{name.replace('_', '-')}", value)
        elif name == "exit_hook":
            changes[name] = shlex.split(value)
        elif name in schema.JobFile.__struct_fields__ and name not in ("restart", "torch", "command"):
            changes[name] = value
    if command:
        changes |= {"command": command, "actor": ""}
    torch = _torch(job, given)
    job = replace(job, **changes, torch=torch)
    return restart_of(given.get("restart"), given.get("max_restarts"), job)


def _torch(job: schema.JobFile, given: dict[str, Any]) -> bool | schema.Torch:
    asked = job.torch if not given.get("torch") else (job.torch or True)
    detail: dict[str, Any] = {name: given[name] for name in ("module", "role") if name in given}
    if "no_python" in given:
        detail["python"] = not given["no_python"]
    if not detail:
        return asked
    if not asked:
        raise InvalidRequest("--module, --no-python and --role go with --torch: add it, or leave them out")
    return replace(asked if isinstance(asked, schema.Torch) else schema.Torch(), **detail)


def parse_labels(option: str, pairs: list[str]) -> dict[str, str | list[str]]:
    """``LABEL=VALUE`` texts as the values of each label; raises InvalidRequest."""
    found: dict[str, str | list[str]] = {}
    for pair in pairs:
        ((label, value),) = parse_pairs(option, [pair]).items()
        known = found.setdefault(label, [])
        assert isinstance(known, list)
        known.append(value)
    return found
