"""The reference of the Python interface, from its docstrings and signatures."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from prose import NOTE, doc

import spoke

SECTIONS: dict[str, tuple[str, ...]] = {
    "Clients": ("Client", "AsyncClient"),
    "Gangs and handles": ("GangFuture", "Gang", "AsyncGang", "ActorHandle", "AsyncActorHandle"),
    "What a gang asks for and gets": ("Resources", "Group", "Slot", "ActorExit", "LogLine", "Notice"),
    "Inside an actor": ("Actor", "ActorContext", "register_actor"),
    "Data": ("Stream", "Mailbox", "Buffer", "BufferHandle", "Transport"),
    "Looking after actors": ("Supervision", "Restart", "HealthCheck", "ExitHook", "Torchrun"),
    "The pool": ("PoolStatus", "NodeStatus", "TicketStatus", "Explanation", "PendingReason"),
}
"""What is public, in the order of the page; errors and ``__version__`` follow by themselves."""
WIDTH = 110


def render() -> str:
    """The page; public names that are in no section stand under "More"."""
    named = {name for names in SECTIONS.values() for name in names}
    errors = {name for name in spoke.__all__ if _is_error(getattr(spoke, name))}
    more = sorted(set(spoke.__all__) - named - errors - {"__version__"})
    parts = [
        NOTE.format(source="the docstrings of spoke"),
        "# The Python interface\n",
        "`import spoke` has all of it; nothing else is public. `spoke.__version__` is the version. Methods that return "
        "a future start at once; `result(timeout)` waits. The clients, gangs and handles for asyncio have the same "
        "methods as coroutines.\n",
        "The tests run the examples in a pool of two nodes with four GPUs each: `client` is open, `gang` was just "
        "granted two slots with a GPU each, `mixed` one controller and two workers, `workers` are two running actors "
        "(`worker` the first), `ended` is a gang of two whose commands have ended, `waiting` the future of a gang that "
        "waits in line, `ctx` an actor's own context. `await` stands where a notebook allows it.\n",
    ]
    for section, names in [*SECTIONS.items(), *([("More", more)] if more else [])]:
        parts.append(f"## {section}\n")
        for name in names:
            parts += _entry(name, getattr(spoke, name))
    parts.append("## Errors\n")
    parts.append("All are `spoke.SpokeError`s: catch at the level that you want.\n")
    parts.append("\n".join(["| error | is a | when |", "|---|---|---|", *_errors(sorted(errors))]) + "\n")
    return "\n".join(parts)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### `{name}`\n"
    if not inspect.isclass(thing):
        yield _code(_signature(name, thing))
        yield _text(thing)
        return
    yield _code(_signature(name, thing).removesuffix(" -> None"))
    yield _text(thing)
    known = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
    for member, value in _members(thing):
        if member in known:
            continue
        if isinstance(value, property):
            kind = _type(inspect.signature(value.fget).return_annotation) if value.fget else "Any"
            yield f"#### `{name}.{member}`\n"
            yield _code(f"{member}: {kind}")
            yield _text(value)
        elif callable(value) or isinstance(value, (classmethod, staticmethod)):
            told = getattr(thing, member)
            prefix = "await " if inspect.iscoroutinefunction(told) else ""
            yield f"#### `{name}.{member}`\n"
            yield _code(_signature(member, told, prefix))
            yield _text(value)


def _members(thing: type) -> list[tuple[str, Any]]:
    """Public members with a docstring, in the order in which they were written; those of bases of ours come first."""
    found: dict[str, Any] = {}
    for cls in reversed(thing.__mro__):
        if cls.__module__.startswith("spoke."):
            for name, value in vars(cls).items():
                if not name.startswith("_") and inspect.getdoc(value):
                    found.pop(name, None)  # it stands where it was said last
                    found[name] = value
    return list(found.items())


def _signature(name: str, thing: Any, prefix: str = "") -> str:
    """The signature as code, a parameter a line when it is long."""
    signature = inspect.signature(thing)
    shown, marked = [], False
    for at, one in enumerate(signature.parameters.values()):
        if (at == 0 and one.name in {"self", "cls"}) or one.name.startswith("_"):
            continue
        marked = marked or one.kind is one.VAR_POSITIONAL
        if one.kind is one.KEYWORD_ONLY and not marked:
            shown.append("*")
            marked = True
        shown.append(_parameter(one))
    end = f" -> {_type(signature.return_annotation)}" if signature.return_annotation is not signature.empty else ""
    line = f"{prefix}{name}({', '.join(shown)}){end}"
    if len(line) <= WIDTH:
        return line
    return f"{prefix}{name}(\n" + "".join(f"    {one},\n" for one in shown) + f"){end}"


def _parameter(one: inspect.Parameter) -> str:
    """A parameter as it is written in code."""
    stars = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
    text = f"{stars}{one.name}" + ("" if one.annotation is one.empty else f": {_type(one.annotation)}")
    if one.default is one.empty:
        return text
    default = "..." if re.search(r" at 0x|<factory>", repr(one.default)) else repr(one.default)
    return f"{text} = {default}"


def _type(annotation: Any) -> str:
    """An annotation without the modules that its names come from."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+([A-Z]\w*)", r"\1", text)


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _text(thing: Any) -> str:
    """Its docstring; examples in it as code."""
    lines: list[str] = []
    example: list[str] = []
    for line in [*doc(thing).splitlines(), ""]:
        if example and not line.strip():
            lines += ["```pycon", *inspect.cleandoc("\n".join(example)).splitlines(), "```", ""]
            example = []
        elif example or line.lstrip().startswith(">>>"):
            if not example and lines and lines[-1]:
                lines.append("")
            example.append(line)
        else:
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, spoke.SpokeError)


def _errors(names: list[str]) -> Iterator[str]:
    for name in names:
        thing = getattr(spoke, name)
        bases = ", ".join(f"`{base.__name__}`" for base in thing.__bases__ if base is not Exception) or "`Exception`"
        words = doc(thing).partition("\n\n>>> ")[0]  # an example is no part of a table
        told = " ".join(words.replace("|", "\\|").split())
        yield f"| `{name}` | {bases} | {told} |"
