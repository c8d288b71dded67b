"""Who may read the output of a ticket, as it stands beside that output: the log key, in a file for the agent's user.

It stays as long as the output does, also over the agent's end. A directory that was left by another user's ticket of
the same name (in a pool that was emptied, say) is put aside, so that nobody reads it with the new ticket's key.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import time
from pathlib import Path

from spoke.agent.logs.files import DIRECTORY_MODE
from spoke.protocol.logs import Asked, sign

NAME = ".log-key"


def admit(directory: Path, log_key: bytes) -> None:
    """From now on the output in a ticket's directory is for the holders of this key; raises OSError."""
    found = key_of(directory)
    if found == log_key:
        return
    if directory.exists():
        directory.rename(directory.with_name(f"{directory.name}.{time.time_ns()}"))
    directory.mkdir(DIRECTORY_MODE, parents=True)
    fd = os.open(directory / NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(log_key)


def key_of(directory: Path) -> bytes:
    """The log key of a ticket's directory; empty where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (directory / NAME).read_bytes()
    return b""


def may_read(asked: Asked, directory: Path, pool: str, node_id: str) -> bool:
    """Whether the ask is signed with the log key of what it asks for."""
    return is_signed(asked, key_of(directory), pool, node_id)


def is_signed(asked: Asked, opens: bytes, pool: str, node_id: str) -> bool:
    """Whether the ask is signed with this key; False if there is none."""
    if not opens:
        return False
    return hmac.compare_digest(sign(opens, pool, node_id, asked.reader, asked.seq, asked.body), asked.mac)
