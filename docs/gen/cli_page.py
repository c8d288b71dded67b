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
    arguments = [_metavar(parameter) for parameter in command.params if parameter.param_type_name != "option"]
    usage = " ".join([path, "[OPTIONS]", *arguments])
    rows = list(filter(None, map(_row, command.params)))
    table = "\n".join(["| option | meaning | default |", "|---|---|---|", *rows]) + "\n" if rows else ""
    return f"## `{path}`\n\n{_help(command)}\n```console\n$ {usage}\n```\n\n{table}"


def _row(parameter: Any) -> str:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return ""
    if parameter.param_type_name != "option":
        names = f"`{_metavar(parameter)}`"
    elif parameter.is_flag:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    else:
        names = ", ".join(f"`{name}`" for name in parameter.opts) + f" `{_metavar(parameter)}`"
    return f"| {cell(names)} | {cell(markdown(getattr(parameter, 'help', None) or ''))} | {_default(parameter)} |"


def _metavar(parameter: Any) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _default(parameter: Any) -> str:
    default = parameter.default
    if isinstance(getattr(parameter, "show_default", None), str):
        return f"`{parameter.show_default}`"
    if getattr(parameter, "is_flag", False):
        chosen = () if default is None else parameter.opts if default else parameter.secondary_opts
        return f"`{chosen[0]}`" if chosen and parameter.secondary_opts else ""
    if isinstance(default, (int, float, str)) and default != "":
        return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    return "required" if parameter.required else ""


def _help(command: Any) -> str:
    text = re.sub(r"\x08", "", command.help or "").strip()
    return markdown(text) + "\n" if text else ""
