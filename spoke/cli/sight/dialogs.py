"""The dialogs of ``spoke top``: a question that is answered with y or n, and a text to read."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static


class Question(ModalScreen[bool]):
    """Asks; only ``y`` means yes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("y", "answer(True)"), Binding("n,escape,q,enter", "answer(False)")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The question, and how to answer it."""
        yield Vertical(Static(Text(self.text)), Static(Text("y: yes   n: no", style="bold")), classes="dialog")

    def action_answer(self, yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(yes)


class Reading(ModalScreen[None]):
    """Shows a text, which may still have to be found out."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,x,enter,question_mark", "close")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self.title_text, self.text = title, text

    def compose(self) -> ComposeResult:
        """The title, the text, and how to leave."""
        yield VerticalScroll(
            Static(Text(self.title_text, style="bold")),
            Static(Text(self.text), id="text"),
            Static(Text("Esc: back", style="bright_black")),
            classes="dialog",
        )

    def show(self, text: str) -> None:
        """Replace the text, also one that is not on the screen yet, or no more."""
        self.text = text
        for shown in self.query("#text").results(Static):
            shown.update(Text(text))

    def action_close(self, *_: Any) -> None:
        """Go back."""
        self.dismiss(None)
