"""The one reader of a client's reply stream, however many futures wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from spoke.client.patience import Outage
from spoke.protocol.server import BLOCK_MS_MAX, StreamEntries, connect, read_stream

ENTRIES_MAX: Final = 512


class Reader:
    """Reads on from its cursor for as long as the session lasts, over any number of connections."""

    def __init__(
        self,
        url: str,
        stream: str,
        client_id: str,
        *,
        heard: Callable[[StreamEntries], None],
        out_of_reach: Callable[[BaseException, float], None],
        back: Callable[[], None],
    ) -> None:
        self._redis = connect(url)
        self._stream = stream
        self._heard = heard
        self._out_of_reach = out_of_reach
        self._back = back
        self._after = "0-0"
        self._stopping = threading.Event()
        self._outage = Outage(f"reading replies of client {client_id}", url, self._stopping)
        self.thread = threading.Thread(target=self._run, name=f"spoke-{client_id}-reader", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Tell the thread to end, and wake it if it waits for the server."""
        self._stopping.set()
        self._redis.connection_pool.disconnect()

    def close(self) -> None:
        """Close the connection; after the thread has ended."""
        self._redis.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._outage.persist(self._read, self._failed)

    def _read(self) -> None:
        try:
            entries = read_stream(self._redis, self._stream, self._after, block_ms=BLOCK_MS_MAX, count=ENTRIES_MAX)
        except (RedisError, OSError, ValueError, AttributeError):
            if self._stopping.is_set():  # stop() has closed the connection under our feet
                return
            raise
        if self._outage.over():
            self._back()
        if entries:
            self._after = entries[-1][0].decode()
            self._heard(entries)

    def _failed(self, error: BaseException) -> None:
        assert self._outage.since is not None
        self._out_of_reach(error, self._outage.since)
