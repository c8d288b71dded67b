"""Sending requests: directly from the calling thread when it is quiet, many in one write when it is not.

The queue holds the numbers of requests in their order; session and machine hold the requests. Whoever has ``_busy``
owns the connection, takes what stands in the queue, writes it in one go and reads the acknowledgements. A caller
that finds nothing under way does this itself: one round trip and no other thread woken. In a burst the sender's own
thread does it, and the longer one write takes the more requests the next one carries.

When the connection breaks, what was written may or may not stand in the stream. The sender then connects anew and
sends *everything* without an answer again, in order, with the same numbers: the allocator knows them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from hiredis import pack_command
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from spoke.client.instructions import Transmit
from spoke.client.patience import PAUSE_S_MAX, Outage, log
from spoke.errors import InvalidRequest, SpokeError
from spoke.protocol.identity import Key
from spoke.protocol.keys import Keys
from spoke.protocol.requests import Envelope, encode_request
from spoke.protocol.server import connect, explain, transient

BATCH_MAX: Final = 256
BATCH_BYTES_MAX: Final = 8 << 20
_JOIN_BYTES_MAX: Final = 1 << 20
_IDLE_S: Final = 60.0


class Source(Protocol):
    """Where the sender gets requests from, and whom it tells what became of them."""

    def take(self, seqs: list[int]) -> list[Transmit]:
        """What to send of these requests."""

    def resend(self, fill: Callable[[Iterable[int]], None]) -> None:
        """Fill the queue anew with all that has no answer."""

    def sending_unclear(self, seqs: list[int]) -> None:
        """The connection broke while these were sent."""

    def send_refused(self, refused: list[tuple[int, SpokeError]]) -> None:
        """The server refused to take these."""

    def out_of_reach(self, error: BaseException, since: float) -> None:
        """The server cannot be reached since a moment."""


class Sender:
    """Owns the connection on which a client's requests go out."""

    def __init__(self, source: Source, url: str, keys: Keys, client_id: str, key: Key | None = None) -> None:
        self.queue: deque[int] = deque()
        self._source = source
        self._url = url
        self._stream, self._pool, self._key = keys.requests, keys.pool, key
        self._client_id = client_id
        self._redis = connect(url, pool=keys.pool)
        self._connection: Any = None
        self._busy = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._rung = False
        self._up = False
        self._renew = False
        self._demoted = False
        self._stopping = threading.Event()
        self._outage = Outage(f"sending requests of client {client_id}", url, self._stopping)
        self.thread = threading.Thread(target=self._run, name=f"spoke-{client_id}-sender", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Tell the thread to end; it does so at once unless the server hangs."""
        self._stopping.set()
        self._bell.put(None)

    def close(self) -> None:
        """Close the connection; after the thread has ended."""
        self._disconnect()
        self._redis.close()

    def kick(self, *, direct: bool) -> None:
        """Something stands in the queue. ``direct``: send it in this thread, if nothing is under way."""
        if direct and not self._renew and self._busy.acquire(blocking=False):
            try:
                self._ship()
            except (RedisError, OSError):
                pass  # the thread takes over, see _ship
            finally:
                self._busy.release()
                if self.queue or self._renew:
                    self._ring()
        else:
            self._ring()

    def _ring(self) -> None:
        if not self._rung:  # else the thread is about to look into the queue anyway
            self._rung = True
            self._bell.put(None)

    def renew(self) -> None:
        """The server was away: connect anew and send again what has no answer."""
        self._renew = True
        self._ring()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(Empty):
                self._bell.get(timeout=_IDLE_S)
            self._rung = False
            if self.queue or self._renew:
                try:
                    with self._busy:
                        self._outage.persist(self._work, self._failed)
                except Exception:  # a defect here must not leave everybody waiting
                    log.exception("sending requests of client %s failed; trying again", self._client_id)
                    self.renew()
                    self._stopping.wait(PAUSE_S_MAX)

    def _work(self) -> None:
        """Send all that stands in the queue."""
        if self._renew:
            self._disconnect()
            self._connect()
            self._renew = False
            self._source.resend(self._refill)
        while self.queue and not self._stopping.is_set():
            self._ship()
        self._outage.over()

    def _refill(self, seqs: Iterable[int]) -> None:
        self.queue.clear()
        self.queue.extend(seqs)

    def _failed(self, error: BaseException) -> None:
        assert self._outage.since is not None
        self._source.out_of_reach(error, self._outage.since)

    # --- with the connection owned -------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self._up:
            if self._connection is None:
                self._connection = self._redis.connection_pool.get_connection()
            else:
                self._connection.connect()
            self._up = True

    def _disconnect(self) -> None:
        self._up = False
        if self._connection is not None:
            self._connection.disconnect()

    def _ship(self) -> None:
        """Write one batch and read its acknowledgements.

        If the connection breaks, everything is to be sent again on a new one (``_renew``), and the error is raised.
        """
        seqs: list[int] = []
        acked = 0
        refused: list[tuple[int, SpokeError]] = []
        try:
            self._connect()
            batch = self._source.take(self._next_seqs())
            seqs, packed = self._pack(batch, refused)
            if seqs:
                self._connection.send_packed_command(packed, check_health=False)
            for seq in seqs:
                try:
                    self._connection.read_response()
                except ResponseError as error:
                    if transient(error):
                        raise
                    refused.append((seq, explain(error, self._url)))
                    self._demoted |= isinstance(error, ReadOnlyError)
                acked += 1
        except BaseException:
            self._source.sending_unclear(seqs[acked:])
            self._disconnect()
            self._renew = True
            raise
        finally:
            if refused:
                self._source.send_refused(refused)
        if self._demoted:  # perhaps the name of the server leads to another one by now
            self._demoted = False
            self._renew = True

    def _next_seqs(self) -> list[int]:
        seqs: list[int] = []
        try:
            while len(seqs) < BATCH_MAX:
                seqs.append(self.queue.popleft())
        except IndexError:
            pass
        return seqs

    def _pack(self, batch: list[Transmit], refused: list[tuple[int, SpokeError]]) -> tuple[list[int], list[bytes]]:
        """The numbers of what goes into one write, and the write."""
        seqs: list[int] = []
        packed: list[bytes] = []
        size = 0
        for at, one in enumerate(batch):
            if size > BATCH_BYTES_MAX:  # the rest goes with the next write
                self.queue.extendleft(rest.seq for rest in reversed(batch[at:]))
                break
            try:
                asked = Envelope(one.request, self._client_id, one.seq, blobs=one.blobs)
                fields = encode_request(asked, self._key, self._pool)
            except (TypeError, ValueError) as error:
                refused.append((one.seq, InvalidRequest(f"the request cannot be written as JSON: {error}")))
                continue
            # Without the redis client's own packer, which takes five times as long to come to this call.
            command = pack_command(
                ("XADD", self._stream, "*", *chain.from_iterable(fields.items()))  # type: ignore[arg-type]
            )
            packed.append(command)
            seqs.append(one.seq)
            size += len(command)
        return seqs, [b"".join(packed)] if size < _JOIN_BYTES_MAX else packed
