"""``spoke``: the application, and how its commands end.

Exit codes: 0 all went well, 1 a SpokeError (one line ``spoke: …`` on standard error), 2 the command line was not
understood, 78 an operator removed the agent's node, 130 Ctrl-C. ``spoke run`` returns what its command returned.
"""

from __future__ import annotations

import errno
import inspect
import sys
from typing import Annotated, Any

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


class SpokeGroup(TyperGroup):
    """The root group: turns errors into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands, in the order in which they were added."""
        return list(self.commands)

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
                complain(str(error))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=SpokeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command("up")(up.up)
app.command("run", cls=RunCommand, context_settings={"allow_interspersed_args": False})(run.run)
app.command("status")(pool.status)
app.command("nodes")(pool.nodes)
app.command("tickets")(pool.tickets)
app.command("top")(top.top)
app.command("web")(web.web)
app.command("explain")(explain.explain)
app.command("logs")(logs.logs)
app.command("log")(history.log)
app.command("release")(pool.release)
app.add_typer(node.app, name="node")
app.add_typer(ticket.app, name="ticket")
app.add_typer(gpu.app, name="gpu")
app.command("timeline")(timeline.timeline)
app.add_typer(queue.queue, name="queue")
app.add_typer(queue.quota, name="quota")
app.add_typer(queue.reserve, name="reserve")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="key")
app.command("allocator")(daemons.allocator)
app.command("agent")(daemons.agent)
app.command("shell")(shell.shell)
app.command("doctor")(doctor.doctor)


def _reflow(group: typer.Typer) -> None:
    """Join the lines of each paragraph of the commands' docstrings, which a terminal has another width for."""
    for command in group.registered_commands:
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n") if command.callback else []
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for child in group.registered_groups:
        if child.typer_instance is not None:
            _reflow(child.typer_instance)


_reflow(app)

if __name__ == "__main__":
    app(prog_name="spoke")
