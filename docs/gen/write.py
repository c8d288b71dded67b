"""Write the generated pages of the reference, or with ``--check`` say which are not current (exit code 1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import api_page
import cli_page
import events_page
import house_map
import keys_page
import lifecycles_page

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/api.md": api_page.render,
    "docs/reference/cli.md": cli_page.render,
    "docs/reference/events.md": events_page.render,
    "docs/reference/keys.md": keys_page.render,
    "docs/reference/lifecycles.md": lifecycles_page.render,
    "CONTRIBUTING.md": house_map.render,
}


def main() -> int:
    """Write or check every page."""
    stale = []
    for name, render in PAGES.items():
        path, text = ROOT / name, render()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text)
            print(f"wrote {name}")
    if stale and "--check" in sys.argv:
        print(f"not current: {', '.join(stale)}. Run `make docs-gen` and commit what it writes.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
