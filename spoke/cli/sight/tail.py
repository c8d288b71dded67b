"""The output of a ticket, as it comes, over `spoke top`'s other panes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import RichLog, Static

from spoke.cli.output import clean
from spoke.cli.sight.tails import News
from spoke.errors import SpokeError

LINES_MAX = 5_000
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "bright_green")


class Tail(ModalScreen[None]):
    """Follows output until it is closed; ``alone``: of one rank only, whose number need not be shown."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,l", "close")]

    def __init__(self, title: str, tail: Iterator[News], *, alone: bool) -> None:
        super().__init__()
        self.title_text, self._tail, self._alone = title, tail, alone
        self.closed = False

    def compose(self) -> ComposeResult:
        """The title, the lines, and how to leave."""
        yield Vertical(
            Static(Text(self.title_text, style="bold")),
            RichLog(id="lines", max_lines=LINES_MAX, wrap=True, min_width=1),
            Static(Text("↑ ↓ PgUp PgDn End: look back   Esc: back", style="bright_black"), id="state"),
            classes="tail",
        )

    def on_mount(self) -> None:
        """Begin to follow."""
        self.query_one("#lines", RichLog).focus()
        self.run_worker(self._follow, thread=True, exit_on_error=False)

    def on_unmount(self) -> None:
        """Follow no more."""
        self.closed = True

    def _follow(self) -> None:
        said = "the actors have ended"
        try:
            for news in self._tail:
                if self.closed:
                    return
                self._pass_on(news)
        except (SpokeError, OSError) as error:
            said = str(error) or type(error).__name__
        finally:
            self._tail.close()  # type: ignore[attr-defined]
        self._pass_on(News(notes=(said,)))

    def _pass_on(self, news: News) -> None:
        """Show it, and wait until it is shown: what is not shown is not asked for."""
        if not self.closed and self.app.is_running:
            self.app.call_from_thread(self._show, news)

    def _show(self, news: News) -> None:
        if self.closed:
            return
        shown = self.query_one("#lines", RichLog)
        at_end = shown.is_vertical_scroll_end
        for rank, text in news.lines:
            prefix = Text() if self._alone else Text(f"[{rank}] ", style=COLOURS[rank % len(COLOURS)])
            shown.write(prefix.append(text, style="default"), scroll_end=at_end)
        for note in news.notes:
            shown.write(Text(f"-- {clean(note)} --", style="bright_black"), scroll_end=at_end)

    def action_close(self) -> None:
        """Go back."""
        self.closed = True
        self.dismiss(None)
