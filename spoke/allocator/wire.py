"""The leader's connection to the server: commits and reads go out without waiting for the answer of the one before.

So the server works on one commit while the next one is decided. Answers come in the order of what was sent, and are
taken in that order.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import ResponseError

from spoke.errors import Fenced
from spoke.protocol.scripts import Script
from spoke.protocol.server import Redis, pack, pack_xread, take_xread

_COMMIT: Final = Script("spoke.allocator", "commit.lua")

RawRequests = list[tuple[str, dict[bytes, bytes]]]


class Wire:
    """One connection, owned by one term of leadership. What it raises ends the term."""

    def __init__(self, client: Redis) -> None:
        self._sha: Any = _COMMIT.load(client)
        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        self.server_id = self._ask_server_id()
        """The run id of the server at the other end. The connection is lost before that can change."""
        self._unsent: list[bytes] = []

    def _ask_server_id(self) -> str:
        self._connection.send_command("INFO", "server", check_health=False)
        found: bytes = self._connection.read_response()
        lines = found.decode(errors="replace").splitlines()
        return next(line.partition(":")[2] for line in lines if line.startswith("run_id:"))

    def send_commit(self, keys: list[str], args: list[str | bytes | int]) -> None:
        """Begin a commit; see ``commit.lua`` for the arguments. It goes out with ``flush``."""
        self._unsent.append(pack("EVALSHA", self._sha, len(keys), *keys, *args))

    def take_commit(self) -> tuple[int, list[str]]:
        """The end of a commit: the server's time in ms, and the lease holders that have run out.

        Raises Fenced if another allocator leads, or if the log is not as it was left.
        """
        self.flush()
        try:
            found: Any = self._connection.read_response()
        except ResponseError as error:
            if "FENCED" in str(error) or "DIVERGED" in str(error):
                raise Fenced(f"this allocator no longer leads the pool: {error}") from error
            raise
        return int(found[0]), [holder.decode() for holder in found[1:]]

    def send_read(self, stream: str, after: str, *, block_ms: int | None, count: int) -> None:
        """Begin to read on in a stream, and wait up to ``block_ms`` for the first entry (None: not at all).

        It goes out with ``flush``.
        """
        self._unsent.append(pack_xread(stream, after, block_ms=block_ms, count=count))

    def flush(self) -> None:
        """Send what was begun, in one go."""
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._connection.send_packed_command([b"".join(unsent)], check_health=False)

    def take_read(self) -> RawRequests:
        """The entries that were read, by their ids."""
        self.flush()
        return [
            (entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)))
            for entry_id, flat in take_xread(self._connection)
        ]

    def close(self) -> None:
        """Drop the connection, with whatever is under way on it."""
        self._connection.disconnect()
        self._pool.release(self._connection)
