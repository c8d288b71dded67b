"""The page "High availability", walked: sentinels and a cluster with deploy/'s files, two allocators, a failover."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ha import ClusterSetup, SentinelSetup
from tests.pages import ROOT, Walk


@pytest.mark.timeout(240)
def test_the_page(tmp_path: Path) -> None:
    with SentinelSetup(tmp_path / "sentinel") as sentinel, ClusterSetup(tmp_path / "cluster") as cluster:
        stand_ins = {"--gpus auto": "--gpus 4"}
        for at, process in enumerate(sentinel.sentinels):
            stand_ins[f"10.0.0.{5 + at}:26379"] = f"127.0.0.1:{process.port}"
        stand_ins["-h 10.0.0.5 -p 26379"] = f"-h 127.0.0.1 -p {sentinel.sentinels[0].port}"
        for at in range(2):
            stand_ins[f"10.0.1.{5 + at}:6379"] = f"127.0.0.1:{cluster.nodes[at].port}"
        with Walk(tmp_path / "reader", stand_ins) as walk:
            if shutil.which("redis-cli") is None:
                stand_in = walk.programs / "redis-cli"
                stand_in.write_text(f'#!/bin/bash\nPYTHONPATH={ROOT} exec python -m tests.redis_cli "$@"\n')
                stand_in.chmod(0o755)
            walk.walk(ROOT / "docs/how-to/high-availability.md")
