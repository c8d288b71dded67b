"""``spoke``: the application, and how its commands end.

Exit codes: 0 all went well, 1 a SpokeError (one line ``spoke: …`` on standard error), 2 the command line was not
understood, 78 an operator removed the agent's node, 130 Ctrl-C. ``spoke run`` returns what its command returned.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from spoke.cli import (
    audit,
    daemons,
    doctor,
    explain,
    gpu,
    history,
    keys,
    logs,
    node,
    pool,
    queue,
    run,
    shell,
    ticket,
    timeline,
    top,
    up,
    web,
)
from spoke.cli.job.command import RunCommand
from spoke.cli.output import complain, forget_output
from spoke.errors import NodeRemoved, SpokeError

REMOVED = 78
"""The exit code of an agent whose node an operator removed: whoever watches over it must not start it again."""


COMMANDS: Final = (
    # what everybody does
    ("up", up.up),
    ("run", run.run),
    # look
    ("status", pool.status),
    ("nodes", pool.nodes),
    ("tickets", pool.tickets),
    ("explain", explain.explain),
    ("logs", logs.logs),
    ("top", top.top),
    ("web", web.web),
    # the log
    ("log", history.log),
    ("timeline", timeline.timeline),
    ("audit", audit.app),
    # change
    ("release", pool.release),
    ("ticket", ticket.app),
    ("node", node.app),
    ("gpu", gpu.app),
    ("queue", queue.queue),
    ("quota", queue.quota),
    ("reserve", queue.reserve),
    # keep it running
    ("allocator", daemons.allocator),
    ("agent", daemons.agent),
    ("key", keys.app),
    ("doctor", doctor.doctor),
    ("shell", shell.shell),
)
"""In the order in which `spoke --help` shows them."""


class SpokeGroup(TyperGroup):
    """The root group: turns errors into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in their order."""
        return [name for name, _ in COMMANDS]

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except SpokeError as error:
            complain(str(error) or type(error).__name__)
            raise typer.Exit(REMOVED if isinstance(error, NodeRemoved) else 1) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                forget_output()
            else:
                complain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=SpokeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # frames would leave 80 columns no room for the options' names
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Spoke: reserve GPUs for a whole gang of actors at once, run them, and get everything back.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from spoke import __version__

        print(f"spoke {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _say_first_sentences(group: typer.Typer) -> None:
    """Let lists of commands show the first sentence of each, and not its beginning."""
    for command in group.registered_commands:
        text = " ".join((command.callback.__doc__ or "").split()) if command.callback else ""
        command.short_help = text.split(". ")[0].removesuffix(".") + "."


for _name, _command in COMMANDS:
    if isinstance(_command, typer.Typer):
        _say_first_sentences(_command)
        app.add_typer(_command, name=_name, short_help=_command.info.help)
    elif _command is run.run:
        app.command(_name, cls=RunCommand, context_settings={"allow_interspersed_args": False})(_command)
    else:
        app.command(_name)(_command)
_say_first_sentences(app)

if __name__ == "__main__":
    app(prog_name="spoke")
