"""One line that says for how long and for what somebody waits, updated in place; only where a person looks.

A person looks in a notebook, and at a prompt of Python or IPython. SPOKE_PROGRESS=1 shows the line in a script at a
terminal, too; SPOKE_PROGRESS=0 shows it nowhere. Only the main thread has a line: others would write over it.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from html import escape
from secrets import token_hex
from typing import Any, Protocol, TextIO

AFTER_S = 1.0
"""What comes within so long needs no line."""
EVERY_S = 0.5


class Line(Protocol):
    """Where the line stands."""

    def show(self, text: str) -> None:
        """Put this text in the place of the one before."""

    def clear(self) -> None:
        """Take the line away."""


class TextLine:
    """The last line of a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, text: str) -> None:
        """Put this text in the place of the one before; what is wider than the terminal is cut off."""
        width = shutil.get_terminal_size().columns - 1
        plain = "".join(char if char.isprintable() else "?" for char in text)
        self._out.write("\r\x1b[K" + (plain if len(plain) <= width else plain[: width - 1] + "…"))
        self._out.flush()

    def clear(self) -> None:
        """Take the line away."""
        self._out.write("\r\x1b[K")
        self._out.flush()


class HtmlLine:
    """An output of a notebook's cell. ``display`` is IPython's."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._id = token_hex(8)  # ours, so that Ctrl-C while it is first shown can take it away, too
        self._begun = False

    def show(self, text: str) -> None:
        """Put this text in the place of the one before."""
        self._put({"text/plain": text, "text/html": f"<i>{escape(text)}</i>"})

    def clear(self) -> None:
        """Take the line away."""
        if self._begun:
            self._put({"text/plain": "", "text/html": ""})

    def _put(self, shown: dict[str, str]) -> None:
        update, self._begun = self._begun, True
        self._display(shown, raw=True, display_id=self._id, update=update)


def find_line() -> Line | None:
    """Where a line may stand now; None where nobody looks."""
    wanted = os.environ.get("SPOKE_PROGRESS", "")
    if wanted == "0" or threading.current_thread() is not threading.main_thread():
        return None
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and getattr(shell, "kernel", None) is not None:
        return HtmlLine(sys.modules["IPython.display"].display)
    if (shell is not None or hasattr(sys, "ps1") or wanted == "1") and sys.stderr is not None and sys.stderr.isatty():
        return TextLine(sys.stderr)
    return None


def watch(
    done: Callable[[float], bool], describe: Callable[[], str], line: Line, timeout_s: float | None
) -> float | None:
    """Wait until ``done(seconds)``, which waits itself, is true, or the time is over; how much of that is left.

    The line says what ``describe`` says, and is gone at the end, whatever that is.
    """
    now = began = time.monotonic()
    end = None if timeout_s is None else began + timeout_s
    try:
        while True:
            line.show(f"{now - began + AFTER_S:.0f} s, {describe()} (Ctrl-C ends the wait)")
            now = time.monotonic()
            if done(EVERY_S if end is None else max(0.0, min(EVERY_S, end - now))):
                break
            now = time.monotonic()
            if end is not None and now >= end:
                break
    finally:
        line.clear()
    return None if end is None else max(0.0, end - time.monotonic())
