"""Job files: what may stand in them, and reading them. The keys are the options of ``spoke run``, with underscores."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import yaml

from spoke.errors import InvalidRequest

FILE_BYTES_MAX = 1 << 20

Word = str | int | float
Command = str | list[Word]
"""Words, or one text that is taken apart as a shell would, without anything else that a shell does."""
Size = int | str
Span = int | float | str
Labels = dict[str, str | list[str]]
RestartWord = Literal["never", "on_failure", "gang"]
FailureWord = Literal["release", "report"]
_WORDS = {"restart": get_args(RestartWord), "policy": get_args(RestartWord), "on_failure": get_args(FailureWord)}


class _Part(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all: an unknown key is an error."""


class Restart(_Part):
    """What follows a failure; see ``spoke.Restart``."""

    policy: RestartWord = "on_failure"
    max_restarts: int = 3
    backoff: Span = 1.0
    backoff_max: Span = 60.0
    window: Span = 600.0


class Health(_Part):
    """How hanging is noticed; see ``spoke.HealthCheck``."""

    interval: Span = 10.0
    timeout: Span = 5.0
    failures: int = 3
    command: Command = []


class Hook(_Part):
    """What is run at each end; see ``spoke.ExitHook``."""

    command: Command
    timeout: Span = 30.0


class Group(_Part):
    """Members that are alike: what each needs, where they may be, what they run, how they are looked after."""

    nodes: int | str = 1
    actors_per_node: int = 1
    gpus_per_actor: float = 0
    gpu_memory_per_actor: Size = 0
    gpu_model: list[str] = []
    cpus_per_actor: float = 0
    memory_per_actor: Size = 0
    nics_per_actor: int = 0
    strict_pack: bool | None = None
    strategy: str | None = None
    where: Labels = {}
    where_not: Labels = {}
    min_gpu_memory: Size = 0
    command: Command = []
    actor: str = ""
    args: dict[str, Any] = {}
    restart: RestartWord | Restart = "never"
    start_timeout: Span = 0
    health: Health | None = None
    exit_hook: Command | Hook | None = None
    limits: dict[str, Size] = {}


class Torch(_Part):
    """``command`` as torchrun would run it: a script of Python's, a ``module``, or (``python`` false) as it stands."""

    role: str = "default"
    module: bool = False
    python: bool = True


class JobFile(Group):
    """All of a job."""

    groups: dict[str, Group] = {}
    name: str = ""
    timeout: Span = 300.0
    on_failure: FailureWord = "release"
    near: str | None = None
    exclusive: bool = False
    same: str | None = None
    prefer_same: str | None = None
    preferred_node: str | None = None
    gpu_ids: list[int] | None = None
    priority: int = 0
    project: str = ""
    expected_duration: Span | None = None
    max_duration: Span | None = None
    preemptible: bool = False
    reservation: str = ""
    grace: Span = 5.0
    cwd: str | None = None
    env: dict[str, Word] = {}
    env_files: list[str] = []
    torch: bool | Torch = False


class _Yaml(yaml.SafeLoader):
    """YAML with the plain words of version 1.2: in 1.1 ``1:4`` is the number 64, ``no`` false, and a day a date."""


_Yaml.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))


def read_job(path: str) -> JobFile:
    """The job in a file; paths in it are taken from where it lies. Raises InvalidRequest, which names what is wrong."""
    file = Path(path)
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise InvalidRequest(f"{path} is larger than {FILE_BYTES_MAX} bytes: is it a job file?")
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the job file {path} cannot be read: {error}") from error
    try:
        found = tomllib.loads(text) if path.endswith(".toml") else yaml.load(text, _Yaml)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidRequest(f"the job file {path} cannot be read: {error.problem}{where}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"the job file {path} cannot be read: {error}") from error
    job = job_of(found, path)
    folder = os.path.dirname(os.path.abspath(path))
    env: dict[str, Word] = {}
    for name in job.env_files:
        env.update(read_env(os.path.join(folder, name)))
    cwd = None if job.cwd is None else os.path.normpath(os.path.join(folder, job.cwd))
    return msgspec.structs.replace(job, env={**env, **job.env}, cwd=cwd)


def job_of(found: object, where: str) -> JobFile:
    """Plain data as a job; raises InvalidRequest."""
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where} holds no job: write keys and values, like nodes: 2")
    try:
        return msgspec.convert(found, JobFile)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{where}: {_in_words(str(error))}") from error


def _in_words(told: str) -> str:
    """msgspec's words with the key in front, and the key that was perhaps meant."""
    reason, _, path = told.partition(" - at `")
    key = path.rstrip("`").removeprefix("$").lstrip(".").replace("[...]", ".*")
    words = _WORDS.get(key.rpartition(".")[2])
    if words and reason.startswith("Invalid enum value"):
        return f"{key}: {reason.removeprefix('Invalid enum value ')} was written; there are {', '.join(words)}"
    if not reason.startswith("Object contains unknown field"):
        return f"{key or 'the job'}: {reason[0].lower()}{reason[1:]}" if key else reason
    name = reason.rpartition("`")[0].rpartition("`")[2]
    known = sorted({*JobFile.__struct_fields__} if not key else _fields_at(key))
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
    return f"there is no key {f'{key}.' if key else ''}{name}{hint}"


def _fields_at(key: str) -> set[str]:
    head = key.split(".", maxsplit=1)[0]
    parts: dict[str, type[_Part]] = {
        "groups": Group,
        "restart": Restart,
        "health": Health,
        "exit_hook": Hook,
        "torch": Torch,
    }
    return set(parts[head].__struct_fields__) if head in parts else set()


def read_env(path: str) -> dict[str, Word]:
    """A file of lines NAME=VALUE, as ``--env-file`` of others read it: ``#`` begins a comment line. InvalidRequest."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the env file {path} cannot be read: {error}") from error
    found: dict[str, Word] = {}
    for number, raw in enumerate(lines, 1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(f"line {number} of {path} is not NAME=VALUE")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def words_of(command: Command) -> list[str]:
    """A command as words; raises InvalidRequest."""
    if not isinstance(command, str):
        return [str(word) for word in command]
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InvalidRequest(f"the command {command!r:.200} cannot be taken apart: {error}") from error
