"""The page "Use it like MPI", walked; the real MPI is mpi4py on MPICH, where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.pages import ROOT, Walk

REAL = importlib.util.find_spec("mpi4py") is not None


@pytest.mark.timeout(200)
def test_the_page(tmp_path: Path) -> None:
    page = ROOT / "docs/how-to/mpi.md"
    if not REAL:
        page = tmp_path / "without.md"
        page.write_text((ROOT / "docs/how-to/mpi.md").read_text().split("## A real MPI")[0])
    with Walk(tmp_path / "reader") as walk:
        (walk.directory / "examples").symlink_to(ROOT / "examples")
        typed = walk.walk(page)
    assert len(typed) == (6 if REAL else 4)
