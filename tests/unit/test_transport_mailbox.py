"""A mailbox that several threads empty."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from spoke.errors import WaitTimeout
from spoke.transport.bell import Bell
from spoke.transport.mailbox import Mailbox


class Contested:
    """What comes to it is always taken by somebody else, between the look and the grasp."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self.looks = 0
        self.ended = threading.Event()
        threading.Thread(target=self._ring, daemon=True).start()

    def _ring(self) -> None:
        while not self.ended.wait(0.01):
            self._bell.ring()

    @property
    def has_items(self) -> bool:
        self.looks += 1
        return self.looks % 2 == 0

    def take(self) -> None:
        return None

    def done(self) -> bool:
        return self.ended.is_set()

    def cancel(self) -> bool:
        return False

    def drop(self) -> None:
        self.ended.set()


class Connection:
    """What a mailbox asks of it."""

    def open_mailbox(self, window: object, bell: Bell) -> Contested:
        return Contested(bell)


def test_waiting_ends_in_time_also_where_others_take_what_comes() -> None:
    connections: Any = {0: Connection()}
    with Mailbox(connections) as box:
        threading.Timer(5, box.close).start()
        start = time.monotonic()
        with pytest.raises(WaitTimeout):
            box.get(0.2)
        assert time.monotonic() - start < 4
