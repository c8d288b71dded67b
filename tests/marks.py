"""Processes that are known by a mark in their environment, wherever they have gone."""

from __future__ import annotations

import psutil

MARK = "SPOKE_TEST_MARK"


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
