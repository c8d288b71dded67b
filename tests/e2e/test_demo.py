"""The examples that start a pool of their own: they work, say what they promise, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.marks import MARK, marked

ROOT = Path(__file__).resolve().parents[2]
DEMO_S = 110.0

pytest.importorskip("sklearn")


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark for the processes of one test; those that are left at its end are killed."""
    value = uuid.uuid4().hex
    yield value
    for process in marked(value):
        process.kill()


@pytest.mark.timeout(150)
def test_the_demo_trains_gives_everything_back_and_leaves_no_process(mark: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py")],
        cwd=tmp_path,
        env={**os.environ, MARK: mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert [process.cmdline() for process in marked(mark)] == []
    assert len(re.findall(r"^  \S+ is up: 4 GPUs", said, re.MULTILINE)) == 2
    assert len(re.findall(r"^  rank [0-3] -> ", said, re.MULTILINE)) == 4
    assert len(re.findall(r"^  \S+: 4 of 4 GPUs free \[0, 1, 2, 3\]$", said, re.MULTILINE)) == 2
    accuracy = re.search(r"accuracy on held-out digits: ([\d.]+); all 4 copies of the model equal: True", said)
    assert accuracy is not None, said
    assert float(accuracy[1]) > 0.93
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < losses[0] / 4
    assert "the replayed log and the live pool agree: True" in said
    assert "gang.released" in said


@pytest.mark.timeout(150)
def test_the_ring_adds_up_and_leaves_no_process(mark: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ring_all_reduce.py")],
        cwd=tmp_path,
        env={**os.environ, MARK: mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0 sits between 3 and 1" in done.stdout
    assert len(re.findall(r"^round \d: 4 x 8 MB added up in \d+ ms$", done.stdout, re.MULTILINE)) == 5
    assert "every sum is right: True" in done.stdout
    assert [process.cmdline() for process in marked(mark)] == []


@pytest.mark.timeout(150)
def test_an_example_that_is_terminated_takes_everything_with_it(mark: str, tmp_path: Path) -> None:
    example = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "examples" / "ring_all_reduce.py")],
        cwd=tmp_path,
        env={**os.environ, MARK: mark, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert example.stdout is not None
    assert any("rank 0 sits between" in line for line in example.stdout)  # all of it runs
    assert list(tmp_path.glob("spoke-demo-*"))
    example.terminate()
    example.communicate(timeout=DEMO_S)
    assert example.returncode == 128 + signal.SIGTERM
    assert [process.cmdline() for process in marked(mark)] == []
    assert not list(tmp_path.glob("spoke-demo-*"))
