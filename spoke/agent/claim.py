"""Claiming a node: one agent per node id on a machine, and nothing left over from an earlier one.

The lock is held by the agent and its keeper together. So it is free only when the keeper has killed everything too,
and a new agent that gets it finds at most what outlived both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path

from spoke.agent import procfs
from spoke.errors import SpokeError

LOCK_S_MAX = 10.0
SWEEP_S_MAX = 20.0


class NodeTaken(SpokeError):
    """Another agent on this machine has the node id."""

    code = "node_taken"


class NodeNotClean(SpokeError):
    """Processes of an earlier agent of this node cannot be killed."""

    code = "node_not_clean"


def mark_prefix(place: str, pool: str, node_id: str) -> str:
    """The launch mark's part before the launch id. ``place`` tells servers apart: pools of two may share a name."""
    realm = hashlib.sha256(place.encode()).hexdigest()[:8]
    return f"{realm}/{pool}/{node_id}/"


class NodeClaim:
    """The node id ``node_id`` of a pool, claimed on this machine until ``release`` (and until the keeper has ended)."""

    def __init__(self, run_dir: Path, mark: str, pool: str, node_id: str) -> None:
        self._what = f"node {node_id} of pool {pool}"
        self._mark = mark
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = run_dir / f"{mark.strip('/').replace('/', '~')}.lock"
        self.fd = self._open()
        try:
            self._lock()
        except BaseException:
            os.close(self.fd)
            raise

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_S_MAX
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self.fd, self.path):
                    break
                gone, self.fd = self.fd, self._open()  # who had it has taken the file away
                os.close(gone)
            except BlockingIOError:
                pid, _, started = os.pread(self.fd, 100, 0).decode().partition(" ")
                if pid and procfs.started_at(int(pid)) == started and procfs.is_alive(int(pid)):
                    raise NodeTaken(
                        f"{self._what} was to be served here, and an agent with this node id is running already on "
                        f"this machine (pid {pid}): choose another --node-id, or stop that agent"
                    ) from None
                if time.monotonic() > deadline:
                    raise NodeNotClean(
                        f"{self._what} cannot be served yet: its last agent has died and its keeper still waits for "
                        f"processes to end (look for state D in ps); start the agent again when they are gone"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()} {procfs.started_at(os.getpid())}".encode(), 0)

    def sweep(self) -> int:
        """Kill what earlier agents of this node left behind; returns how many.

        What survives here has lost its agent and its keeper both. Raises NodeNotClean if some will not die.
        """
        seen: set[int] = set()

        def find() -> list[int]:
            found = procfs.marked(self._mark)
            seen.update(found)
            return found

        left = procfs.kill_until_gone(find, SWEEP_S_MAX)
        if left:
            raise NodeNotClean(
                f"{self._what} cannot be served: processes {', '.join(map(str, left))} of an earlier agent were killed "
                f"and do not end (state D in ps?); nothing may run on its GPUs before they are gone"
            )
        return len(seen)

    def release(self) -> None:
        """Give the claim up, and take the file away unless the keeper, or another agent by now, has it locked."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)  # who comes now waits for the keeper, and is not told that this agent serves
            os.close(self.fd)
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, self.path):
                    self.path.unlink()
            finally:
                os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
