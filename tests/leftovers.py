"""A test session leaves nothing behind: no file in the temporary folder or in /dev/shm, and no process.

All that the session starts has a folder of the session's own for temporary files (one for each worker of xdist, so that
it can be told after which test a file was there), and is found by that folder's name in its environment. At the end
the folder must be empty, and no such process may live; else the session fails, and says what is left. What is
left by design (locks of agents that were killed, logs of actors, torch's cache) has folders of the session's, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests import nursery

VARIABLE = "TEST_SESSION_FOLDER"
PREFIX = "spoke-tests-"
SHARED = Path("/dev/shm")
PATIENCE_S = 15.0
ENDS_WITH_US = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_KEY = pytest.StashKey["Session"]()


class Session:
    """What belongs to one session; in a worker of xdist, its part of that."""

    def __init__(self, root: Path, worker: str) -> None:
        self.root, self.folder = root, root / "tmp" / worker
        self.first_seen: dict[str, str] = {}
        self.found: list[str] = []
        self.shared_before = set(os.listdir(SHARED)) if SHARED.is_dir() else set()

    def enter(self) -> None:
        """From now on, temporary files go into the session's folder."""
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # for pytest's own folders
        self.folder.mkdir(parents=True)
        os.environ |= {
            VARIABLE: str(self.root),
            "TMPDIR": str(self.folder),
            "XDG_STATE_HOME": str(self.root / "state"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "torch"),
        }
        tempfile.tempdir = None

    def note(self, test: str) -> None:
        """Remember after which test a file was there for the first time."""
        for name in os.listdir(self.folder):
            self.first_seen.setdefault(f"{self.folder.name}/{name}", test)

    def check(self) -> None:
        """Find what is left, and remove it."""
        _until(lambda: not _processes_of(self.root))
        self.found += [f"process {pid}: {command}" for pid, command in _kill(self.root).items()]
        for path in sorted(self.root.glob("tmp/*/*")):
            name = f"{path.parent.name}/{path.name}"
            self.found.append(f"temporary file {name}, first seen after {self.first_seen.get(name, 'the last test')}")
        _until(lambda: not self._shared())
        self.found += [f"{SHARED / name}" for name in self._shared()]
        shutil.rmtree(self.root, ignore_errors=True)

    def _shared(self) -> list[str]:
        """Shared memory that was not there before, and that no process has mapped."""
        new = {name for name in os.listdir(SHARED) if name not in self.shared_before} if SHARED.is_dir() else set()
        if new:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    maps = _read(int(pid), "maps").decode(errors="replace")
                    new = {name for name in new if f"{SHARED / name}" not in maps}
        return sorted(new)


def _processes_of(root: Path) -> dict[int, str]:
    """The processes of a session, and what they run."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if pid == os.getpid() or str(root).encode() not in _read(pid, "environ"):
                continue
            command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            if command and not any(word in command for word in ENDS_WITH_US):
                found[pid] = command[:200]
    return found


def _kill(root: Path) -> dict[int, str]:
    killed: dict[int, str] = {}
    while found := {pid: command for pid, command in _processes_of(root).items() if pid not in killed}:
        killed |= found
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return killed


def _read(pid: int, what: str) -> bytes:
    return Path(f"/proc/{pid}/{what}").read_bytes()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _remove_what_killed_sessions_left() -> None:
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), open(root / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill(root)
            shutil.rmtree(root, ignore_errors=True)


def _locked(root: Path) -> IO[bytes]:
    """The session's lock. It has its name once it is locked, so that nobody takes the folder for a dead session's."""
    lock = open(root / "lock.new", "wb")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(root / "lock.new", root / "lock")
    return lock


def pytest_configure(config: pytest.Config) -> None:
    """Before xdist starts its workers, which get the environment from here."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        session = Session(Path(os.environ[VARIABLE]), worker["workerid"])
    else:
        _remove_what_killed_sessions_left()
        session = Session(Path(tempfile.mkdtemp(prefix=PREFIX)), "main")
        config.add_cleanup(_locked(session.root).close)
    config.stash[_KEY] = session
    session.enter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """See what each test leaves."""
    result = yield
    item.config.stash[_KEY].note(item.nodeid)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist has ended."""
    node.config.stash[_KEY].first_seen.update(getattr(node, "workeroutput", {}).get(VARIABLE, {}))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[Any]:
    """When the workers have ended, and before the summary is printed."""
    result = yield
    own = session.config.stash[_KEY]
    nursery.close()
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput[VARIABLE] = own.first_seen
        return result
    own.check()
    if own.found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left."""
    found = config.stash[_KEY].found
    if found:
        terminalreporter.section("left behind by the tests", red=True, bold=True)
        for what in found:
            terminalreporter.write_line(what)
