"""Mailboxes outlive restarts: each end of an actor's pushes is followed by one mailbox at its new process, not two."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from spoke.client.renewal import Renewal
from spoke.protocol.replies import ActorInfo
from tests.fakes import eventually

ACTOR = ActorInfo(0, "a-0", "n0", "l-0", "running", 1, "tcp://127.0.0.1:1")


class Mailbox:
    """Opens nothing, and counts."""

    def __init__(self) -> None:
        self.opened = 0

    def _renew(self, rank: int, connection: object) -> None:
        self.opened += 1

    def _look_again(self) -> None:
        pass


class Connections:
    """Of a gang; SimpleNamespace knows no weak references."""


def test_news_while_a_mailbox_is_opened_does_not_open_it_twice() -> None:
    """The thread that waits is held up between its two looks at an attempt, until that has succeeded."""
    mailbox: Any = Mailbox()
    connecting, go_on = threading.Event(), threading.Event()

    def is_up(rank: int) -> ActorInfo:
        held = renewal._changed._is_owned()  # type: ignore[attr-defined]
        if threading.current_thread().name == "spoke-mailbox" and connecting.is_set() and not held:
            go_on.set()
            eventually(lambda: not opening())
        return ACTOR

    def reached() -> None:
        connecting.set()
        renewal.news(0)
        go_on.wait(0.5)

    ticket: Any = SimpleNamespace(released=False, exits={}, actors=SimpleNamespace(get=is_up))
    session: Any = SimpleNamespace(is_over=None)
    connections: Any = Connections()
    connections.to = lambda actor: SimpleNamespace(open=reached)
    renewal = Renewal(session, ticket, connections, [ACTOR])
    renewal.keep(mailbox)
    renewal.ended(0)
    eventually(lambda: mailbox.opened and not opening() and not renewal._runs)
    assert mailbox.opened == 1


def opening() -> bool:
    return any(thread.name == "spoke-mailbox-opens" for thread in threading.enumerate())
