"""The check at the end of each test session: it fails a session that leaves something, and names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import leftovers
from tests.pages import ROOT

CONFTEST = """
import os
from pathlib import Path

import tests.leftovers

tests.leftovers.PATIENCE_S = 0.2
tests.leftovers.SHARED = Path(os.environ["SHARED"])
pytest_plugins = ["tests.leftovers"]
"""
LEAKS = """
import os, subprocess, sys, tempfile
from pathlib import Path

def test_a_file():
    tempfile.mkstemp(prefix="litter-")

def test_memory():
    Path(os.environ["SHARED"], "litter").touch()

def test_a_process():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60.5)"], start_new_session=True)
"""
KILLED = """
import os, signal, subprocess

def test_it():
    subprocess.Popen(["sleep", "60.5"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.kill(os.getpid(), signal.SIGKILL)
"""
CLEAN = """
import subprocess, sys, tempfile

def test_all_is_cleaned_up(tmp_path):
    (tmp_path / "kept").touch()  # pytest's own folders are pytest's affair
    with tempfile.NamedTemporaryFile():
        subprocess.run([sys.executable, "-c", "pass"], check=True)
"""


def shared(directory: Path) -> Path:
    """What stands for /dev/shm, in which sessions beside this one make and remove files."""
    return directory / "shm"


def session(directory: Path, tests: str, *words: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(tests)
    shared(directory).mkdir(exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SPOKE_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(directory), "-c", "/dev/null", *words, str(directory)],
        env={**own, "TMPDIR": str(directory), "SHARED": str(shared(directory)), "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("words", [(), ("-n", "2")])
def test_a_session_that_leaves_something_fails_and_names_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = session(tmp_path, LEAKS, *words)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "3 passed" in found.stdout
    assert "/litter-" in found.stdout
    assert "first seen after test_it.py::test_a_file" in found.stdout
    assert str(shared(tmp_path) / "litter") in found.stdout
    assert "time.sleep(60.5)" in found.stdout
    assert not list(tmp_path.glob("spoke-tests-*"))


def test_a_session_that_leaves_nothing_passes(tmp_path: Path) -> None:
    found = session(tmp_path, CLEAN)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "left behind" not in found.stdout


def test_what_a_session_that_was_killed_has_left_goes_with_the_next(tmp_path: Path) -> None:
    killed = session(tmp_path, KILLED)
    assert killed.returncode < 0
    (root,) = tmp_path.glob("spoke-tests-*")
    (left,) = leftovers._processes_of(root)
    assert session(tmp_path, CLEAN).returncode == 0
    assert not list(tmp_path.glob("spoke-tests-*"))
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
