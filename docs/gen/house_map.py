"""The map of the house in CONTRIBUTING.md: each module's first sentence."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from prose import cell, markdown

ROOT = Path(__file__).resolve().parents[2]
TREES = (
    "spoke/cli",
    "spoke/allocator",
    "spoke/agent",
    "spoke/client",
    "spoke/protocol",
    "spoke/events",
    "spoke/transport",
    "bench",
    "examples",
    "docs/gen",
)
"""From top to bottom, as imports go; each comes with the folders in it."""
BEGIN, END = "<!-- map: begin (written by `make docs-gen`) -->", "<!-- map: end -->"


def render() -> str:
    """CONTRIBUTING.md with its map made anew."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{_map()}\n{END}{after}"


def _map() -> str:
    parts = []
    trees = [ROOT / tree for tree in TREES]
    folders = [ROOT / "spoke", *(path for tree in trees for path in (tree, *sorted(tree.rglob("*/"))))]
    for folder in folders:
        files = sorted(folder.glob("*.py")) + sorted(folder.glob("*.lua"))
        rows = [f"| `{path.name}` | {cell(_first_sentence(path))} |" for path in files if path.name != "__init__.py"]
        package = folder / "__init__.py"
        intro = f"{_first_sentence(package)}\n\n" if package.exists() else ""
        if rows:
            table = "\n".join(["| file | what it is |", "|---|---|", *rows])
            parts.append(f"### {folder.relative_to(ROOT)}/\n\n{intro}{table}\n")
    return "\n".join(parts)


def _first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, or of a script's opening comment."""
    source = path.read_text()
    if path.suffix == ".lua":
        text = " ".join(line[2:].strip() for line in source.splitlines() if line.startswith("--"))
    else:
        text = ast.get_docstring(ast.parse(source)) or ""
    return markdown(re.split(r"(?<=[.!?])\s", text.replace("\n", " ").strip())[0])
