"""Processes by way of /proc and prctl(2). Standard library only, since the keeper imports it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable

LAUNCH_MARK = "SPOKE_LAUNCH"
"""In the environment of every process of an actor: ``<realm>/<pool>/<node>/<launch id>``."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_S = 0.01


def prctl(option: int, value: int) -> None:
    """Call prctl(2); raises OSError if the kernel refuses."""
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """Have the orphans among this process's descendants re-parented to it."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def signal_at_parent_death(number: int) -> None:
    """Get signal ``number`` when the thread that forked this process ends. Check ``getppid`` afterwards."""
    prctl(PR_SET_PDEATHSIG, number)


def children() -> list[int]:
    """The direct children of this process, zombies included.

    Exact for a process with one thread: the kernel appends to the list, and only this process takes off it, by waiting.
    """
    found: list[int] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
        return found
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that ended meanwhile
        me = str(os.getpid())
        return [pid for pid in all_pids() if (fields := stat_of(pid)) is not None and fields[1] == me]


def all_pids() -> list[int]:
    """Every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (state, parent, group, session ...); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()  # the name before it may hold anything
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    fields = stat_of(pid)
    return fields is not None and fields[0] not in "ZX"


def started_at(pid: int) -> str:
    """When the process started, in the kernel's ticks: with the pid it names a process for good. "" if it is gone."""
    fields = stat_of(pid)
    return fields[19] if fields is not None else ""


def session_of(pid: int) -> int:
    """The process's session; 0 if it is gone."""
    fields = stat_of(pid)
    return int(fields[3]) if fields is not None else 0


def mark_of(pid: int) -> str:
    """The launch mark in the environment with which the process was exec'ed; "" if it has none or is not ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return ""
    prefix = LAUNCH_MARK.encode() + b"="
    return next((e[len(prefix) :].decode(errors="replace") for e in entries if e.startswith(prefix)), "")


def marked(prefix: str) -> list[int]:
    """The processes whose launch mark begins with ``prefix``, without this one and its ancestors."""
    spared, pid = set(), os.getpid()
    while pid and pid not in spared:
        spared.add(pid)
        fields = stat_of(pid)
        pid = int(fields[1]) if fields is not None else 0
    return [pid for pid in all_pids() if pid not in spared and mark_of(pid).startswith(prefix)]


def send_signal(pid: int, number: int) -> None:
    """Signal a process; one that is gone, or not ours, is passed over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_until_gone(find: Callable[[], Iterable[int]], timeout_s: float) -> list[int]:
    """SIGKILL what ``find`` finds until it finds nothing; returns what is left after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while left := list(find()):
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)
    return []
