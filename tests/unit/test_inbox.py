"""The inbox: order, time limits, back-pressure, and callbacks that ask for more."""

from __future__ import annotations

import asyncio

import pytest

from spoke.agent.inbox import BYTES_MAX, Inbox
from spoke.errors import ActorUnreachable, WaitTimeout


def test_messages_come_by_sender_and_tag_in_order_whoever_is_first() -> None:
    inbox, accepted = Inbox(), []
    early = [inbox.expect(1, 0, 10) for _ in range(2)]
    for value in "abcd":
        inbox.put(1, 0, value, 1, lambda value=value: accepted.append(value))  # type: ignore[misc]
    inbox.put(2, 0, "other sender", 1, lambda: None)
    inbox.put(1, 5, "other tag", 1, lambda: None)
    assert [future.result(0) for future in early] == ["a", "b"]
    assert [inbox.expect(1, 0, 10).result() for _ in range(2)] == ["c", "d"]
    assert inbox.expect(1, 5, 10).result() == "other tag"
    assert accepted == list("abcd")


def test_what_nobody_waits_for_any_more_goes_to_the_next() -> None:
    inbox = Inbox()
    late, cancelled, waiting = inbox.expect(1, 0, 0.0), inbox.expect(1, 0, 10), inbox.expect(1, 0, 10)
    with pytest.raises(WaitTimeout, match="rank 1 sent nothing with tag 0 within 0.0 s"):
        late.result()
    cancelled.cancel()
    inbox.put(1, 0, "x", 1, lambda: None)
    assert waiting.result(0) == "x"


def test_a_sender_is_held_back_when_too_much_waits() -> None:
    inbox, accepted = Inbox(), []
    for number in range(3):
        inbox.put(1, 0, number, BYTES_MAX // 2, lambda number=number: accepted.append(number))  # type: ignore[misc]
    assert accepted == [0, 1]
    assert [inbox.expect(1, 0, 10).result() for _ in range(3)] == [0, 1, 2]
    assert accepted == [0, 1, 2]


def test_a_callback_may_ask_for_the_next_message() -> None:
    inbox, got = Inbox(), []
    first = inbox.expect(1, 0, 10)
    first.add_done_callback(lambda _: got.append(inbox.expect(1, 0, 10)))
    inbox.put(1, 0, "a", 1, lambda: None)
    inbox.put(1, 0, "b", 1, lambda: None)
    assert got[0].result() == "b"


def test_awaiting_and_the_end() -> None:
    async def main() -> None:
        inbox = Inbox()
        with pytest.raises(WaitTimeout):
            await inbox.expect(1, 0, 0.01)
        waiting = inbox.expect(1, 0, 10)
        asyncio.get_running_loop().call_soon(inbox.put, 1, 0, "x", 1, lambda: None)
        assert await waiting == "x"
        left = inbox.expect(1, 0, None)
        inbox.close()
        for future in (left, inbox.expect(1, 0, None)):
            with pytest.raises(ActorUnreachable, match="ending"):
                await future

    asyncio.run(asyncio.wait_for(main(), 10))
