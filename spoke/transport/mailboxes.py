"""Pushing from an actor to the mailboxes that its callers have opened: the actor's side.

A mailbox is a stream without a method. What does not fit into a mailbox's window is not kept here, since nothing may
grow behind a caller that does not read: it is lost, and the mailbox is told how much was.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from spoke.transport.credit import SenderCredit, Window
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Kind
from spoke.transport.job import Caller, Job
from spoke.transport.values import pack, pack_apart

_TWO: Final = b"\x92"  # the msgpack of a list of two: how many were lost, the value


def _no_method(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a mailbox is nothing to call")


class MailboxJob(Job):
    """One open mailbox of a caller, among its jobs, so that it ends with it."""

    __slots__ = ("credit", "lost", "owner")

    def __init__(self, caller: Caller, call_id: int, window: Window) -> None:
        super().__init__(caller, call_id, Kind.MAILBOX, "mailbox", _no_method, [], {}, 0)
        self.credit = SenderCredit(window)
        self.lost = 0
        self.owner: Mailboxes | None = None

    def cancel(self) -> None:
        """Closed by the caller, or the caller is gone."""
        Job.cancel(self)
        if self.owner is not None:
            self.owner.changed(self)

    def granted(self, items: int) -> None:
        """Under the server's lock: there is room again."""
        self.credit.consumed(items)
        if self.owner is not None:
            self.owner.changed(None)


class Mailboxes:
    """The mailboxes that are open at a server. ``lock`` is the server's."""

    def __init__(self, lock: threading.Lock) -> None:
        self._room = threading.Condition(lock)
        self._open: dict[MailboxJob, None] = {}
        self._closed = False

    def open(self, box: MailboxJob) -> None:
        """One more."""
        with self._room:
            if not box.cancelled and not box.caller.gone:
                box.owner = self
                self._open[box] = None

    def changed(self, ended: MailboxJob | None) -> None:
        """Under the lock: one has ended, or has room again."""
        if ended is not None:
            self._open.pop(ended, None)
        self._room.notify_all()

    def close(self) -> None:
        """Nobody need wait for room any more."""
        with self._room:
            self._closed = True
            self._open.clear()
            self._room.notify_all()

    def push(self, value: object, to: Caller | None, timeout_s: float) -> int:
        """Send a value to all, or to those of one caller; waits at most ``timeout_s`` for room; how many took it."""
        header, buffers = pack_apart(value, "what is pushed")
        nbytes = len(header) + sum(map(len, buffers))
        deadline = time.monotonic() + timeout_s
        with self._room:
            boxes = [box for box in self._open if to is None or box.caller is to]
        taken = 0
        for box in boxes:
            with self._room:
                self._room.wait_for(
                    lambda box=box: box.credit.has_room or box.cancelled or self._closed,  # type: ignore[misc]
                    max(0.0, deadline - time.monotonic()),
                )
                if box.cancelled or self._closed:
                    continue
                if not box.credit.has_room:
                    box.lost += 1
                    continue
                lost = pack(box.lost)
                box.credit.sent(nbytes + 1 + len(lost))
            try:
                head = _TWO + lost + header
                box.caller.endpoint.send(Kind.ITEM, box.call_id, head, buffers, may_wait=False, must=True)
                taken += 1
            except EndpointClosed:
                box.caller.endpoint.shutdown()
        return taken
