"""Proof of who uses a GPU: a lock on a file for each, held by the process that was given it, until it is dead.

Independent of the log: two living processes on one GPU are seen here, whatever the allocator believes. As a program
it is the command that clients launch: hold the GPUs for a while, then end with code 0.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path


def hold() -> list[int]:
    """Lock this process's GPUs. A GPU that another living process holds is written to ``double``."""
    directory, node = Path(os.environ["STORM_DIR"]), os.environ["SPOKE_NODE"]
    held = []
    for gpu in filter(None, os.environ["CUDA_VISIBLE_DEVICES"].split(",")):
        fd = os.open(directory / f"gpu-{node}-{gpu}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("double", f"GPU {gpu} of {node}: {os.environ['SPOKE_TICKET']} found it in use")
        held.append(fd)
    return held


def note(name: str, line: str) -> None:
    """Append a line to a file of the storm, whole, also from many processes and under kill -9."""
    fd = os.open(Path(os.environ["STORM_DIR"]) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


if __name__ == "__main__":
    held = hold()
    print(f"holds {len(held)}", flush=True)
    time.sleep(float(sys.argv[1]))
