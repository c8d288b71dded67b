"""A mailbox that several threads empty, and one whose actor is started again."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from spoke.errors import ActorUnreachable, WaitTimeout
from spoke.transport.bell import Bell
from spoke.transport.credit import Window
from spoke.transport.frames import Frame, Kind
from spoke.transport.future import StreamFuture
from spoke.transport.mailbox import Mailbox
from spoke.transport.values import pack, pack_apart


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

    def drop(self) -> int:
        self.ended.set()
        return 0


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


class Process:
    """The process of an actor, as a mailbox sees it: what it pushes, and its end."""

    def open_mailbox(self, window: Window, bell: Bell) -> StreamFuture:
        self.stream = StreamFuture(self, "mailbox", window, bell)  # type: ignore[arg-type]
        return self.stream

    def forget(self, future: object) -> None:
        pass

    def send_credit(self, call_id: int, items: int) -> None:
        pass

    def push(self, *values: object, lost: int = 0) -> Any:
        for value in values:
            header, _ = pack_apart(value, "it")
            self.stream.add(Frame(Kind.ITEM, 0, b"\x92" + pack(lost) + header, []))

    def die(self) -> None:
        self.stream.set_exception(ActorUnreachable("dead"))


class Keeper:
    """Says whether actors may push again; notes whose pushes have ended."""

    def __init__(self) -> None:
        self.hope = True
        self.told: list[object] = []

    def may_return(self, rank: int) -> bool:
        return self.hope

    def ended(self, rank: int) -> None:
        self.told.append(rank)

    def closed(self) -> None:
        self.told.append("closed")


def values(box: Mailbox, count: int) -> list[object]:
    return [box.get(1).value for _ in range(count)]


def restarted(box: Mailbox, old: Process) -> Process:
    old.die()
    box._renew(3, new := Process())  # type: ignore[arg-type]
    return new


def test_what_an_old_process_pushed_comes_before_what_the_new_one_pushes() -> None:
    keeper, first = Keeper(), Process()
    with Mailbox({3: first}, keeper=keeper) as box:  # type: ignore[dict-item]
        first.push(1, 2, lost=5)
        second = restarted(box, first)
        second.push(3)
        assert values(box, 2) == [1, 2]
        assert (values(box, 1), box.lost) == ([3], 5)
        second.push(4, lost=2)
        assert (values(box, 1), box.lost) == ([4], 7)
        second.die()
        assert keeper.told == [3, 3]
        with pytest.raises(WaitTimeout):
            box.get(0.01)
        keeper.hope = False
        with pytest.raises(ActorUnreachable):
            box.get(1)
    assert keeper.told[2:] == ["closed"]


def test_what_nobody_takes_over_several_restarts_is_bounded_and_counted() -> None:
    process = Process()
    with Mailbox({3: process}, keeper=Keeper()) as box:  # type: ignore[dict-item]
        for number in range(10):
            process.push(*[number] * 7)
            process = restarted(box, process)
        process.push("now")
        assert values(box, 8) == [*[9] * 7, "now"]
        assert box.lost == 9 * 7


def test_a_mailbox_that_was_closed_is_not_opened_again() -> None:
    process = Process()
    box = Mailbox({3: process}, keeper=Keeper())  # type: ignore[dict-item]
    process.die()
    box.close()
    late = Process()
    box._renew(3, late)  # type: ignore[arg-type]
    assert late.stream.cancelled()
