"""The page "Upgrade a pool", walked, with one release in the place of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from spoke.cli.embedded import EmbeddedServer
from tests.pages import ROOT, Walk


@pytest.mark.timeout(240)
def test_the_page(tmp_path: Path, server: EmbeddedServer) -> None:
    with Walk(tmp_path / "reader", {"--gpus auto": "--gpus 4"}, variables={"SPOKE_URL": server.url}) as walk:
        walk.run("spoke allocator\n", ["leading pool default in epoch 1"], "old allocator")
        walk.run("spoke agent --node-id node-0 --gpus 4 --allow-commands\n", ["node-0 is up"], "node-0")
        walk.walk(ROOT / "docs/how-to/upgrading.md")
