"""A torch DistributedDataParallel script without a line of Spoke in it, run by ``spoke run``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import free_port

ROOT = Path(__file__).resolve().parents[2]
SPOKE = str(Path(sys.executable).with_name("spoke"))
START_S, RUN_S, STOP_S = 40.0, 100.0, 20.0

pytest.importorskip("torch")
pytest.importorskip("sklearn")


@pytest.fixture
def url(tmp_path: Path, pool: str) -> Iterator[str]:
    """``spoke up`` with two agents of four logical GPUs each."""
    port = free_port()
    address = f"redis://127.0.0.1:{port}"
    command = [SPOKE, "up", "--agents", "2", "--gpus", "4", "--port", str(port), "--data", str(tmp_path / "data")]
    with open(tmp_path / "up.log", "wb") as out:
        up = subprocess.Popen([*command, "--pool", pool], stdout=out, stderr=out, cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not _nodes_are_up(address, pool):
            said = (tmp_path / "up.log").read_text(errors="replace")
            assert up.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield address
    finally:
        up.send_signal(signal.SIGTERM)
        try:
            up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()


def _nodes_are_up(url: str, pool: str) -> bool:
    try:
        with spoke.Client(url, pool=pool) as client:
            return sum(node.state == "up" for node in client.status().nodes) == 2
    except spoke.SpokeError:
        return False


@pytest.mark.timeout(200)
def test_ddp_trains_over_two_nodes(url: str, pool: str) -> None:
    shape = ["--nodes", "2", "--actors-per-node", "2", "--gpus-per-actor", "1"]
    done = subprocess.run(
        [SPOKE, "run", "--url", url, "--pool", pool, *shape, "--", sys.executable, "examples/ddp_digits.py"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    said = f"{done.stdout}\n--- stderr:\n{done.stderr}"
    assert done.returncode == 0, said
    ranks = re.findall(r"rank (\d) of 4, pid \d+, GPUs \[(\d)\]", done.stdout)
    assert sorted(rank for rank, _ in ranks) == ["0", "1", "2", "3"], said
    assert sorted(gpu for _, gpu in ranks) == ["0", "0", "1", "1"], said
    accuracy = re.search(r"accuracy on 360 held-out digits: ([\d.]+)", done.stdout)
    assert accuracy is not None, said
    assert float(accuracy[1]) > 0.93
    with spoke.Client(url, pool=pool) as client:
        deadline = time.monotonic() + STOP_S
        while (status := client.status()).gpus_free != 8 or status.tickets:  # views may be a moment late
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
