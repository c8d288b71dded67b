"""The reference of the command line, from the typer application."""

from __future__ import annotations

import re
from typing import Any

import typer.main
from prose import NOTE, cell, markdown
from spoke.cli.main import app


def render() -> str:
    """The page."""
    root: Any = typer.main.get_command(app)
    parts = [
        NOTE.format(source="spoke/cli/"),
        "# The command line\n",
        _help(root),
        "The server's URL is `--url`, else `SPOKE_URL`, else `redis://127.0.0.1:6379`. The pool is `--pool`, else "
        "`SPOKE_POOL`, else `default`. Exit code 0 means that all went well; 2 that the command line was not "
        "understood.\n",
        *_commands(root, "spoke"),
    ]
    return "\n".join(parts)


def _commands(group: Any, path: str) -> list[str]:
    parts: list[str] = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            parts += _commands(command, full)
        else:
            parts.append(_command(command, full))
    return parts


def _command(command: Any, path: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    rows = [row for row in (_row(parameter, context) for parameter in command.params) if row]
    table = "\n".join(["| option | meaning | default |", "|---|---|---|", *rows]) + "\n" if rows else ""
    return f"## `{path}`\n\n{_help(command)}\n```console\n$ {usage}\n```\n\n{table}"


def _row(parameter: Any, context: Any) -> str:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return ""
    option = parameter.param_type_name == "option"
    if option:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        value = "" if parameter.is_flag else f" `{parameter.make_metavar(context)}`"
    else:
        names, value = f"`{parameter.make_metavar(context)}`", ""
    default = parameter.default
    plain = default is not None and default not in ((), [], False, "") and not callable(default)
    shown = f"`{default}`" if plain else "required" if parameter.required else ""
    return f"| {names}{value} | {cell(markdown(getattr(parameter, 'help', None) or ''))} | {shown} |"


def _help(command: Any) -> str:
    text = re.sub(r"\x08", "", command.help or "").strip()
    return markdown(text) + "\n" if text else ""
