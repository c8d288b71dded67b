"""The engine of "Bring up an inference engine": it runs as the page says, and the page's pieces are the example's."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.pages import ROOT, Walk, blocks

PAGE = ROOT / "docs/how-to/engine.md"


@pytest.mark.timeout(200)
def test_the_page(tmp_path: Path) -> None:
    with Walk(tmp_path / "reader") as walk:
        (walk.directory / "examples").symlink_to(ROOT / "examples")
        assert walk.walk(PAGE) == ["python examples/engine.py\n"]


def test_the_pieces_are_those_of_the_example() -> None:
    text = "\n".join((ROOT / "examples" / name).read_text() for name in ("engine.py", "engine_actors.py"))
    lines = [line.strip() for line in text.splitlines()]
    pieces = [block for block in blocks(PAGE) if block.kind == "python"]
    assert len(pieces) == 7
    for piece in pieces:
        wanted = [line.strip() for line in textwrap.dedent(piece.text).splitlines()]
        starts = [at for at, line in enumerate(lines) if line == wanted[0]]
        assert any(lines[at : at + len(wanted)] == wanted for at in starts), piece.text
