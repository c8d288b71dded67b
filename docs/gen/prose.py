"""Docstrings as Markdown."""

from __future__ import annotations

import inspect
import re

NOTE = "<!-- Generated from {source} by docs/gen/write.py: change the code, then run `make docs-gen`. -->\n"


def doc(thing: object) -> str:
    """The docstring of a class or function, with its ``names`` as Markdown code."""
    return markdown(inspect.getdoc(thing) or "")


def markdown(text: str) -> str:
    """Docstring text as Markdown."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))


def cell(text: str) -> str:
    """Text that stands in a table."""
    return " ".join(text.replace("|", "\\|").split())
