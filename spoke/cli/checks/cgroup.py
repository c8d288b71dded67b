"""The limits that control groups set to this process, version 2 or 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60
"""What version 1 shows where there is no limit is about 2**63."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory in bytes, CPU time in cores, processes and threads; None: no limit."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None


def read_limits(root: Path, own: Path) -> Limits | None:
    """The tightest limits from this process's group upwards, which ``own`` (/proc/self/cgroup) names; None: unknown."""
    try:
        lines = own.read_text().split()
    except OSError:
        return None
    if not root.exists():
        return None
    memory: list[int] = []
    cpus: list[float] = []
    pids: list[int] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            for group in _upwards(root, path):
                memory += _number(group / "memory.max")
                pids += _number(group / "pids.max")
                cpus += _share(_text(group / "cpu.max").split())
            continue
        for name in controllers.split(","):
            for group in _upwards(root / name, path):
                if name == "memory":
                    memory += [one for one in _number(group / "memory.limit_in_bytes") if one < UNLIMITED_BYTES]
                elif name == "pids":
                    pids += _number(group / "pids.max")
                elif name == "cpu":
                    cpus += _share([_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")])
    return Limits(min(memory, default=None), min(cpus, default=None), min(pids, default=None))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group and those above it; a container often sees its own group as the root."""
    group = root / path.lstrip("/")
    while root in group.parents:
        yield group
        group = group.parent
    yield root


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> list[int]:
    text = _text(path)
    return [int(text)] if text.isdigit() else []


def _share(words: list[str]) -> list[float]:
    """Quota and period in microseconds, as cores."""
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []
