"""A pane: any number of lines, of which only the visible ones are drawn, with a cursor that stays on what it is on."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from spoke.cli.sight.lines import Line, Listing

CURSOR = Style(reverse=True)
CURSOR_ELSEWHERE = Style(bold=True)


class Pane(ScrollView, can_focus=True):
    """Lines below a heading that does not scroll with them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "end(-1)", show=False),
        Binding("end,G", "end(1)", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.listing = Listing("", ())
        self.at = 0

    @property
    def key(self) -> str:
        """What the cursor's line stands for; empty if there is no line."""
        return self.listing.lines[self.at].key if self.listing.lines else ""

    def show(self, listing: Listing, *, afresh: bool = False) -> None:
        """Show these lines; the cursor stays on its key, wherever that has gone to (``afresh``: on the first line)."""
        if listing == self.listing and not afresh:
            return
        key = "" if afresh else self.key
        keys = [line.key for line in listing.lines]
        at = keys.index(key) if key in keys else 0 if afresh else min(self.at, len(keys) - 1)
        self.listing, self.at = listing, max(0, at)
        width = max([len(listing.heading), *(len(line.text) for line in listing.lines)])
        self.virtual_size = Size(width, len(listing.lines) + 1)
        if afresh:
            self.scroll_to(0, 0, animate=False)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the screen: the heading, or the line that is scrolled to there."""
        left, top = self.scroll_offset
        width, base = self.size.width, self.rich_style
        if y == 0:
            head = Strip([Segment(self.listing.heading, base + Style(bold=True, underline=True))])
            return head.crop_extend(left, left + width, base)
        number = top + y - 1
        if number >= len(self.listing.lines):
            return Strip.blank(width, base)
        line = self.listing.lines[number]
        chosen = number == self.at
        mark = (CURSOR if self.has_focus else CURSOR_ELSEWHERE) if chosen else Style.null()
        return _strip(line, base, mark).crop_extend(left, left + width, base + mark)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        last = len(self.listing.lines) - 1
        self.at = max(0, min(last, self.at + by))
        top, rows = self.scroll_offset.y, max(1, self.scrollable_content_region.height - 1)
        if self.at < top:
            self.scroll_to(y=self.at, animate=False)
        elif self.at >= top + rows:
            self.scroll_to(y=self.at - rows + 1, animate=False)
        self.refresh()

    def action_page(self, by: int) -> None:
        """Move the cursor by what fits on the screen."""
        self.action_move(by * max(1, self.scrollable_content_region.height - 2))

    def action_end(self, by: int) -> None:
        """Move the cursor to the first or to the last line."""
        self.action_move(by * len(self.listing.lines))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is."""
        number = self.scroll_offset.y + event.y - 1
        if 0 <= number < len(self.listing.lines):
            self.at = number
            self.refresh()


def _strip(line: Line, base: Style, mark: Style) -> Strip:
    return Strip([Segment(text, base + Style.parse(style) + mark) for text, style in line.parts])
