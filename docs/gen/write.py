"""Write the generated pages of the reference, or with ``--check`` say which are not current (exit code 1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cli_page
import events_page
import keys_page
import lifecycles_page

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page.render,
    "events.md": events_page.render,
    "keys.md": keys_page.render,
    "lifecycles.md": lifecycles_page.render,
}


def main() -> int:
    """Write or check every page."""
    stale = []
    for name, render in PAGES.items():
        path, text = REFERENCE / name, render()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text)
            print(f"wrote {path.relative_to(REFERENCE.parent.parent)}")
    if stale and "--check" in sys.argv:
        print(f"not current: {', '.join(stale)}. Run `make docs-gen` and commit what it writes.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
