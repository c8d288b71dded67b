"""A storm of faults on a pool of real processes: nothing is granted twice, lost, leaked, or left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.chaos.storm.faults import KINDS
from tests.chaos.storm.network import Network, NoNamespaces
from tests.chaos.storm.run import show, storm

SECONDS = float(os.environ.get("SPOKE_STORM_SECONDS", "60"))
SEED = int(os.environ.get("SPOKE_STORM_SEED", "2026"))


@pytest.mark.timeout(SECONDS + 540)
def test_a_pool_in_a_storm_loses_and_leaks_nothing(tmp_path: Path) -> None:
    verdict, faults = storm(tmp_path, SECONDS, SEED)
    told = show(verdict, faults, SEED)
    sys.__stdout__.write(f"\n{told}\n")  # type: ignore[union-attr]  # the numbers are of interest when it passes, too
    assert not verdict.problems, told
    assert sum(faults.values()) >= len(KINDS) / 2, told
    assert verdict.asked["call"] >= 50, told


def test_a_storm_without_the_right_to_make_namespaces_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ip").write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(NoNamespaces, match=r"not permitted.*run it as root"), Network(["one"]):
        pass
