"""What ``spoke run`` makes of what happens to its gang: without a server, with a gang that is only told of."""

from __future__ import annotations

import signal
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from spoke.cli.run import Inbox, Interrupted, Job, first_failure
from spoke.client.logs.reading import LogReader
from spoke.client.tracking import ActorExit
from spoke.errors import ActorStartFailed


def end(rank: int, *, code: int = 0, number: int = 0, phase: str = "exited", expected: bool = False) -> ActorExit:
    return ActorExit(rank, f"rank-{rank}", "node-0", phase, code, number, "", expected)


def done(result: Any = None, error: BaseException | None = None) -> Future[Any]:
    future: Future[Any] = Future()
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
    return future


class ToldGang:
    """A gang whose ranks ended as the test says, in the order of ``ends``; ``launched`` answers the launch."""

    def __init__(self, ends: list[ActorExit], launched: Future[Any] | None = None) -> None:
        self.ticket_id, self.slots, self.releasing, self.released = "t-1", (), "", False
        self.ticket = SimpleNamespace(exits={found.rank: found for found in ends})
        self._launched = launched or done([])
        self.releases = 0

    def __len__(self) -> int:
        return len(self.ticket.exits)

    def on_notice(self, tell: Any) -> None:
        self.tell = tell

    def wait(self, *, ranks: Any) -> Future[Any]:
        return done([self.ticket.exits[rank] for rank in ranks if rank in self.ticket.exits])

    def release(self) -> Future[bool]:
        self.releases += 1
        return done(True)


def run(gang: ToldGang, inbox: Inbox | None = None) -> int:
    client: Any = SimpleNamespace(status=lambda: SimpleNamespace(nodes=(), tickets=()), client_id="c", is_open=True)
    return Job(client, LogReader("redis://127.0.0.1:1", "default"), inbox or Inbox()).run(
        done(gang), lambda gang: gang._launched, 0.1
    )


def test_the_first_failure_in_time_counts_and_what_was_told_to_stop_comes_last() -> None:
    told, second, first = end(0, number=15, expected=True), end(1, code=3), end(2, code=9)
    assert first_failure([end(3), first, told, second]) == first
    assert first_failure([told, second]) == second
    assert first_failure([end(0), told]) == told
    assert first_failure([end(0), end(1)]) is None


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([end(0), end(1)], 0),
        ([end(0), end(1, code=3)], 3),
        ([end(1, code=4), end(0, code=3)], 4),
        ([end(0, code=-1, number=9)], 137),
        ([end(0, phase="lost")], 1),
        ([end(0, code=-1, number=15, expected=True)], 143),
    ],
)
def test_the_exit_code(ends: list[ActorExit], code: int) -> None:
    gang = ToldGang(ends)
    assert run(gang) == code
    assert gang.releases == 1


def test_a_rank_that_fails_before_the_others_are_up_is_what_counts() -> None:
    stopped = done(error=ActorStartFailed("rank 1: it was told to stop before it was up"))
    assert run(ToldGang([end(2, code=9), end(1, phase="start_failed", expected=True)], stopped)) == 9


def test_a_launch_that_fails_by_itself_is_an_error_and_released() -> None:
    gang = ToldGang([end(0, phase="start_failed")], done(error=ActorStartFailed("rank 0: no such command")))
    with pytest.raises(ActorStartFailed, match="no such command"):
        run(gang)
    assert gang.releases == 1


def test_a_signal_that_comes_with_the_grant_releases_the_gang() -> None:
    inbox, gang = Inbox(), ToldGang([end(0)], Future())
    with inbox.signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            run(gang, inbox)
    assert stopped.value.number == signal.SIGTERM
    assert gang.releases == 1


def test_the_handlers_are_as_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Inbox().signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
