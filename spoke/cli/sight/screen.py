"""``spoke top``'s application: the nodes above, one of four listings below, and keys for what operators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from spoke.cli.output import clean
from spoke.cli.sight.actions import Action, ActionKind
from spoke.cli.sight.board import Board
from spoke.cli.sight.dialogs import Question, Reading
from spoke.cli.sight.lines import Part, View, listing, summary
from spoke.cli.sight.pane import Pane
from spoke.cli.sight.tail import Tail
from spoke.cli.sight.tails import News
from spoke.errors import SpokeError

REDRAW_S = 0.25
LOWER: tuple[View, ...] = get_args(View)[1:]
KEYS = "q quit  / filter  1-4 list  d drain  u uncordon  r release  x explain  l logs  ?"
HELP = """\
Tab         between the nodes and the list below them
1 2 3 4     below: tickets, queue, actors, events
↑ ↓ j k     move; PgUp, PgDn, Home, End, ← →
/           show only what contains a text; Esc: all again
d           drain the node under the cursor (asks first)
u           let it have new slots again (asks first)
r           release the ticket under the cursor (asks first)
x           explain: why the ticket waits, or is where it is
l           follow the output of the ticket or actor
q           quit

A GPU shows the letter and colour of the ticket that holds it, underlined
where tickets share it; · is free, ! is unhealthy."""


class Source(Protocol):
    """Where boards come from."""

    @property
    def board(self) -> Board:
        """The newest one."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What the application does besides showing. ``act`` is None where nothing may be changed.

    ``explain`` says why a ticket is as it is; ``logs`` follows a ticket's output, of one rank or of all. All of them
    take their time, and raise SpokeError.
    """

    explain: Callable[[str], str]
    logs: Callable[[str, int | None], Iterator[News]]
    act: Callable[[Action], str] | None = None


class Top(App[None]):
    """Shows the boards of a source, at most four a second."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; background: ansi_default; }
    #summary { height: 3; }
    Pane { height: 1fr; overflow-x: auto; overflow-y: auto; scrollbar-size: 1 1; background: ansi_default; }
    #tabs, #keys { height: 1; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    .tail { width: 100%; height: 100%; background: ansi_default; }
    .tail RichLog { height: 1fr; background: ansi_default; scrollbar-size: 1 1; }
    .tail Static { height: 1; }
    .dialog { width: 90%; max-width: 100; height: auto; max-height: 90%; border: round $primary; padding: 0 1; }
    Question, Reading { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", priority=False),
        Binding("slash", "filter"),
        Binding("escape", "unfilter"),
        Binding("question_mark", "help"),
        Binding("d", "act('drain')"),
        Binding("u", "act('uncordon')"),
        Binding("r", "act('release')"),
        Binding("x,enter", "explain"),
        Binding("l", "logs"),
        *(Binding(str(number), f"lower('{view}')") for number, view in enumerate(LOWER, start=1)),
    ]

    def __init__(self, source: Source, hands: Hands) -> None:
        super().__init__(ansi_color=True)
        self.source, self.hands = source, hands
        self.lower: View = "tickets"
        self.wanted = ""
        self.drawn: Board | None = None

    def compose(self) -> ComposeResult:
        """Three lines of summary, the nodes, the list below, the filter, the keys."""
        yield Static(id="summary")
        yield Pane(id="nodes")
        yield Static(id="tabs")
        yield Pane(id="lower")
        yield Input(id="filter", placeholder="filter", compact=True)
        yield Static(Text(KEYS, style="bright_black", no_wrap=True), id="keys")

    def on_mount(self) -> None:
        """Begin to look at the source."""
        self.query_one("#lower", Pane).focus()
        self.draw()
        self.set_interval(REDRAW_S, self.look)

    def look(self) -> None:
        """Draw if there is a new board."""
        if self.source.board is not self.drawn:
            self.draw()

    def draw(self, *, afresh: bool = False) -> None:
        """Draw the newest board; ``afresh``: the list below is another one."""
        board = self.drawn = self.source.board
        nodes, below = self.screen_stack[0].query_one("#nodes", Pane), self.screen_stack[0].query_one("#lower", Pane)
        self.screen_stack[0].query_one("#summary", Static).update(Text("\n").join(map(_text, summary(board))))
        nodes.show(listing(board, "nodes", self.wanted))
        below.show(listing(board, self.lower, self.wanted), afresh=afresh)
        self.screen_stack[0].query_one("#tabs", Static).update(self._tabs(board))

    def _tabs(self, board: Board) -> Text:
        sizes = {view: len(getattr(board, view)) for view in LOWER}
        text = Text(no_wrap=True)
        for number, view in enumerate(LOWER, start=1):
            words = f" {number} {view}" + (f" {sizes[view]:,} " if view != "events" else " ")
            text.append(words, "reverse bold" if view == self.lower else "")
            text.append(" ")
        if self.wanted:
            text.append(clean(f" only with {self.wanted!r}"), "yellow")
        return text

    # --- what is under the cursor ---

    @property
    def node_id(self) -> str:
        """The node that is meant: the one under the cursor above, or that of the actor below."""
        below = self.query_one("#lower", Pane)
        if below.has_focus and self.lower == "actors" and self.drawn is not None:
            return next((row.node for row in self.drawn.actors if row.key == below.key), "")
        return self.query_one("#nodes", Pane).key

    @property
    def ticket(self) -> tuple[str, int | None]:
        """The ticket that is meant, and the rank: that of the line below, or the first of the node above."""
        below = self.query_one("#lower", Pane)
        if not below.has_focus:
            node = self.drawn.node(self.query_one("#nodes", Pane).key) if self.drawn else None
            return (node.tickets[0], None) if node is not None and node.tickets else ("", None)
        if self.lower == "actors":
            ticket_id, _, rank = below.key.partition("/")
            return ticket_id, int(rank) if rank else None
        return (below.key, None) if self.lower in ("tickets", "queue") else ("", None)

    # --- keys ---

    def action_lower(self, view: View) -> None:
        """Show another list below."""
        self.lower = view
        self.draw(afresh=True)
        self.query_one("#lower", Pane).focus()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Reading("Keys", HELP))

    def action_filter(self) -> None:
        """Ask for the text that lines must contain."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_unfilter(self) -> None:
        """Show all again."""
        box = self.query_one("#filter", Input)
        box.value = ""
        self._leave_filter(box)

    def on_input_changed(self, changed: Input.Changed) -> None:
        """Filter while it is typed."""
        self.wanted = changed.value.strip()
        self.draw(afresh=True)

    def on_input_submitted(self, submitted: Input.Submitted) -> None:
        """Keep the filter, and go back to the list."""
        self._leave_filter(submitted.input)

    def _leave_filter(self, box: Input) -> None:
        box.display = False
        self.query_one("#lower", Pane).focus()

    def action_act(self, kind: ActionKind) -> None:
        """Ask, then do it."""
        target = self.ticket[0] if kind == "release" else self.node_id
        act = self.hands.act
        if not target:
            self._tell(f"{kind}: move the cursor to a {'ticket' if kind == 'release' else 'node'} first", bad=True)
        elif act is None:
            self._tell("this view was started with --read-only: nothing can be changed", bad=True)
        else:
            action = Action(kind, target)

            def answered(yes: bool | None) -> None:
                if yes:
                    self._tell(f"{kind} {target} …")
                    self._behind(lambda: act(action), self._tell)

            self.push_screen(Question(action.question), answered)

    def action_explain(self) -> None:
        """Say why the ticket is as it is."""
        ticket_id, _ = self.ticket
        if not ticket_id:
            self._tell("explain: move the cursor to a ticket first", bad=True)
            return
        reading = Reading(f"Ticket {ticket_id}", "reading the log …")
        self.push_screen(reading)
        self._behind(lambda: self.hands.explain(ticket_id), reading.show)

    def action_logs(self) -> None:
        """Follow the output of the ticket or the actor."""
        ticket_id, rank = self.ticket
        if not ticket_id:
            self._tell("logs: move the cursor to a ticket or an actor first", bad=True)
            return
        title = f"Output of {ticket_id}" + ("" if rank is None else f", rank {rank}")
        self.push_screen(Tail(title, self.hands.logs(ticket_id, rank), alone=rank is not None))

    # --- work that takes its time ---

    def _behind(self, work: Callable[[], str], then: Callable[[str], None]) -> None:
        """Do something in a thread, and then something with its result (or its error) here."""

        def run() -> None:
            try:
                result, bad = work(), False
            except (SpokeError, OSError) as error:  # a time limit that ran out is an OSError, too
                result, bad = str(error) or type(error).__name__, True
            if self.is_running:
                self.call_from_thread(self._ended, then, result, bad)

        self.run_worker(run, thread=True, exit_on_error=False)

    def _ended(self, then: Callable[[str], None], result: str, bad: bool) -> None:
        if bad and then == self._tell:
            self._tell(result, bad=True)
        else:
            then(result)

    def _tell(self, text: str, *, bad: bool = False) -> None:
        self.notify(clean(text), severity="error" if bad else "information", markup=False, timeout=8.0)


def _text(parts: tuple[Part, ...]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="crop")
