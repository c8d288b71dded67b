"""How the command line of ``spoke run`` is read: apart from the rest, since every command's start imports it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

SUFFIXES = (".yaml", ".yml", ".toml")


class RunCommand(TyperCommand):
    """``spoke run``: options end at the first word of the command, but go on behind a job file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options behind a job file, too."""
        words: Any = self.make_parser(ctx).parse_args(args=list(args))[0].get("command")
        if isinstance(words, (tuple, list)) and words and words[0].endswith(SUFFIXES):
            head, behind = args[: len(args) - len(words)], [*words[1:]]
            if head[-1:] != ["--"]:
                ctx.obj = {"job": words[0]}
                args = [*head, *behind]
        return super().parse_args(ctx, args)
