"""Asking actors whether they are healthy, on their control sockets: each in a thread, since one may hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from spoke.agent.instructions import Probe
from spoke.errors import SpokeError
from spoke.protocol.launch import decode_blob

if TYPE_CHECKING:
    from spoke.transport import Connection

TRANSPORT = "tcp"
"""The plainest: what is asked is whether the actor answers, not how fast."""


class Prober:
    """Asks one actor per thread, a thread per question. ``tell`` is called with the answer, from that thread."""

    def __init__(self, tell: Callable[[str, tuple[int, int], str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._stopped = False

    def probe(self, step: Probe) -> None:
        """Ask, and say what is wrong (an empty text: nothing) within ``step.timeout_s``."""
        threading.Thread(target=self._probe, args=(step,), name="spoke-probe", daemon=True).start()

    def _probe(self, step: Probe) -> None:
        try:
            trouble = self._ask(step)
        except SpokeError as error:
            trouble = str(error)
        if not self._stopped:
            self._tell(step.launch_id, step.number, trouble)

    def _ask(self, step: Probe) -> str:
        from spoke.transport import connect  # only where it is needed: it would double an agent's start

        secret = decode_blob(step.blob).secret
        connection = connect(step.address, secret, timeout_s=step.timeout_s, transport=TRANSPORT)
        with self._lock:
            self._open.add(connection)
        try:
            return str(connection.ask("healthy", [], timeout_s=step.timeout_s).result())
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def stop(self) -> None:
        """Ask no more; questions under way end."""
        self._stopped = True
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            connection.close()
