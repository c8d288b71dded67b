"""The directory: tells the actors of this node where the other members of their gang are.

An actor asks when it first needs a peer, on a local socket (in the abstract namespace: no file, gone with the agent),
and is told of all ranks at once, from the ticket's view. So no actor needs the server, nothing is sent to gangs whose
members do not talk, and it works as well for ranks that were launched apart or again, and when their client is gone.
Notices for a ticket's actors (a node is being drained, say) wait here, too, until they are fetched.
Addresses alone open nothing: who connects must know the ticket's secret.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
import time
from typing import Any, Final

import msgspec
import redis.exceptions as rx

from spoke.protocol.keys import Keys
from spoke.protocol.notice import Notice
from spoke.protocol.server import connect

log = logging.getLogger("spoke.agent")

KEPT_S: Final = 0.1
REQUEST_BYTES_MAX: Final = 512
REQUEST_S: Final = 2.0
JOIN_S: Final = 3.0
NOTICES_KEPT: Final = 32
_CACHED_MAX: Final = 1000
_CREDENTIALS: Final = struct.Struct("iII")


class Directory:
    """One thread that answers one question after the other."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.name = f"spoke-{os.getpid()}-{secrets.token_hex(12)}"
        self._keys = keys
        self._client = connect(url, pool=keys.pool, timeout_s=REQUEST_S)
        self._known: dict[str, tuple[float, bytes]] = {}
        self._lock = threading.Lock()
        self._notices: dict[str, tuple[tuple[int, Notice], ...]] = {}
        self._posted = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("\0" + self.name)
        self._listener.listen(128)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="spoke-directory", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        self._listener.close()
        self._client.close()

    def _run(self) -> None:
        while not self._stopped:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if not self._stopped:
                    time.sleep(0.05)  # out of descriptors: the question waits in line
                continue
            with sock, contextlib.suppress(OSError):
                sock.settimeout(REQUEST_S)
                credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
                    continue
                what, _, ticket_id = sock.recv(REQUEST_BYTES_MAX).decode(errors="replace").strip().rpartition(" ")
                sock.sendall(self._notices_of(ticket_id) if what == "notices" else self._answer(ticket_id))

    def post(self, notice: Notice) -> None:
        """Keep a notice for the ticket's actors, which ask for it when they are rung."""
        with self._lock:
            self._posted += 1
            kept = self._notices.pop(notice.ticket_id, ())
            self._notices[notice.ticket_id] = (*kept[1 - NOTICES_KEPT :], (self._posted, notice))
            if len(self._notices) > _CACHED_MAX:
                del self._notices[next(iter(self._notices))]

    def _notices_of(self, ticket_id: str) -> bytes:
        """A JSON object: ``notices``, pairs of a number that grows and a notice."""
        with self._lock:
            found = self._notices.get(ticket_id, ())
        return msgspec.json.encode({"notices": found})

    def _answer(self, ticket_id: str) -> bytes:
        """A JSON object: ``ranks``, each with ``state``, ``address`` and ``node``, or ``error``."""
        at_s, answer = self._known.get(ticket_id, (0.0, b""))
        now_s = time.monotonic()
        if now_s - at_s < KEPT_S:
            return answer
        try:
            fields: Any = self._client.hgetall(self._keys.ticket(ticket_id))
        except (rx.RedisError, OSError) as error:
            return msgspec.json.encode({"error": f"the agent cannot ask the server: {error}"})
        ranks: dict[str, Any] = {}
        for name, value in fields.items():
            if name.startswith(b"rank."):
                place = msgspec.json.decode(value)
                if "actor" in place:
                    ranks[name[5:].decode()] = [place.get("state", ""), place.get("address", ""), place.get("node", "")]
        answer = msgspec.json.encode({"state": fields.get(b"state", b"").decode(), "ranks": ranks})
        if len(self._known) >= _CACHED_MAX:
            self._known.clear()
        self._known[ticket_id] = (now_s, answer)
        return answer
