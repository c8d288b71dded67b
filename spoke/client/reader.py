"""The one reader of a client's reply stream, however many futures wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import RedisError

from spoke.client.patience import PAUSE_S_MAX, Outage, log
from spoke.protocol.keys import Keys
from spoke.protocol.replies import REPLIES_KEPT
from spoke.protocol.server import BLOCK_MS_MAX, connect, pack_xread, take_xread, trimmed_behind

ENTRIES_MAX: Final = 512
Replies = list[tuple[bytes, bytes]]
"""What was answered or told: the seq, and the message as it stands in the stream."""


class Reader:
    """Reads on from its cursor for as long as the session lasts, over any number of connections."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        client_id: str,
        *,
        heard: Callable[[Replies], None],
        missed: Callable[[], None],
        out_of_reach: Callable[[BaseException, float], None],
        back: Callable[[], None],
    ) -> None:
        self._redis = connect(url, pool=keys.pool)
        self._stream = keys.reply(client_id)
        self._client_id = client_id
        self._heard, self._missed = heard, missed
        self._out_of_reach = out_of_reach
        self._back = back
        self._connection: Any = None
        self._after: str | bytes = "0-0"
        self._stopping = threading.Event()
        self._outage = Outage(f"reading replies of client {client_id}", url, self._stopping)
        self.thread = threading.Thread(target=self._run, name=f"spoke-{client_id}-reader", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Tell the thread to end, and wake it if it waits for the server."""
        self._stopping.set()
        if self._connection is not None:
            self._connection.disconnect()

    def close(self) -> None:
        """Close the connection; after the thread has ended."""
        if self._connection is not None:
            self._connection.disconnect()
        self._redis.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._outage.persist(self._read_on, self._failed)
            except Exception:  # a defect here must not leave everybody waiting
                log.exception("reading replies of client %s failed; reading on", self._client_id)
                self._stopping.wait(PAUSE_S_MAX)

    def _read_on(self) -> None:
        """Read until told to stop; raises what breaks the connection."""
        try:
            self._connect()
            while not self._stopping.is_set():
                replies = self._read()
                if self._outage.over():
                    self._back()
                if replies:
                    self._heard(replies)
        except (RedisError, OSError, AttributeError):
            if not self._stopping.is_set():  # else stop() has closed the connection under our feet
                raise

    def _connect(self) -> None:
        if self._connection is None:
            self._connection = self._redis.connection_pool.get_connection()
        else:
            self._connection.disconnect()
            self._connection.connect()

    def _read(self) -> Replies:
        # On the bare connection: this is on the way of every reply, and half as long as through the redis client.
        read_on = pack_xread(self._stream, self._after, block_ms=BLOCK_MS_MAX, count=ENTRIES_MAX)
        self._connection.send_packed_command([read_on], check_health=False)
        entries = take_xread(self._connection)
        if len(entries) == ENTRIES_MAX and trimmed_behind(self._redis, self._stream, self._after, REPLIES_KEPT):
            self._missed()
        if entries:
            self._after = entries[-1][0]
        return [pair for _, flat in entries for pair in zip(flat[::2], flat[1::2], strict=True)]

    def _failed(self, error: BaseException) -> None:
        assert self._outage.since is not None
        self._out_of_reach(error, self._outage.since)
