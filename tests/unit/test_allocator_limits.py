"""The limits of a pool, and the turns in which requests are decided."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from spoke.allocator.commit import Batch
from spoke.allocator.effects.kinds import Effect, Tell
from spoke.allocator.intake import STRANGERS, TURN, Intake
from spoke.allocator.limits import Limits
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.chain import Chain
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from tests.builders import MemoryPool, gang, node_spec

SIZE = 100


def ask(client_id: str, seq: int) -> r.Envelope:
    return r.Envelope(r.ReleaseGang("t-1"), client_id, seq)


def given(intake: Intake, count: int = 1_000) -> list[tuple[str, int]]:
    return [(asked.client_id, asked.seq) for asked in intake.take(count)]


def test_senders_take_turns_and_each_keeps_its_order() -> None:
    intake = Intake("0-0", outstanding_max=1_000)
    for number in range(1, 101):
        intake.put(f"{number}-0", ask("loud", number), SIZE)
    intake.put("101-0", ask("quiet", 1), SIZE)
    found = given(intake, 2 * TURN)
    assert ("quiet", 1) in found
    assert [seq for client, seq in found if client == "loud"] == list(range(1, 2 * TURN))
    assert intake.cursor == f"{2 * TURN - 1}-0", "101-0 is decided, those before it are not"
    assert [seq for _, seq in given(intake)] == list(range(2 * TURN, 101))
    assert intake.cursor == "101-0"
    assert len(intake) == 0


def test_a_request_that_came_twice_is_given_out_once() -> None:
    intake = Intake("0-0", outstanding_max=10)
    for number, seq in enumerate((1, 2, 3, 1, 2, 3, 4), 1):
        intake.put(f"{number}-0", ask("c", seq), SIZE)
    assert given(intake) == [("c", 1), ("c", 2), ("c", 3), ("c", 4)]
    assert intake.cursor == "7-0"


def test_a_flood_ends_and_the_others_go_on() -> None:
    intake = Intake("0-0", outstanding_max=10)
    for number in range(1, 100):
        intake.put(f"{number}-0", ask("loud", number), SIZE)
    intake.put("100-0", ask("quiet", 1), SIZE)
    assert intake.take_flooders() == ["loud"]
    assert intake.take_flooders() == []
    assert given(intake) == [("quiet", 1)]
    assert intake.cursor == "100-0"


def test_resending_after_an_outage_is_no_flood() -> None:
    intake = Intake("0-0", outstanding_max=10)
    for number in range(100):
        intake.put(f"{number + 1}-0", ask("c", number % 10 + 1), SIZE)
    assert intake.take_flooders() == []
    assert len(given(intake)) == 10


def test_strangers_share_one_turn() -> None:
    intake = Intake("0-0", outstanding_max=10)
    for number in range(1, 51):
        intake.put(f"{number}-0", r.Garbage(f"forged-{number}", 1, "x", "authentication", "no key"), SIZE)
    intake.put("51-0", ask("c", 1), SIZE)
    assert ("c", 1) in given(intake, TURN + 1)
    assert STRANGERS not in intake.take_flooders()


def test_reading_ahead_has_a_bound() -> None:
    intake = Intake("0-0", outstanding_max=1_000, window=10)
    for number in range(1, 11):
        assert intake.has_room
        intake.put(f"{number}-0", ask("c", number), SIZE)
    assert not intake.has_room
    intake.take(5)
    assert intake.has_room


# --- limits ------------------------------------------------------------------------------------------------------


def limited(limits: Limits, pool: MemoryPool, request: r.Request, seq: int, blobs: bytes = b"") -> p.Message:
    pool.handle(limits.apply(pool.state, r.Envelope(request, "c", seq, blobs=blobs)))
    (found,) = pool.answers["c", seq]
    return found


@pytest.fixture
def pool() -> MemoryPool:
    made = MemoryPool()
    made.register(node_spec("n1"))
    made.handle(r.Envelope(r.ConnectClient(60_000), "c", 1))
    return made


def test_what_goes_beyond_a_limit_is_refused_with_the_reason(pool: MemoryPool) -> None:
    too_large = replace(gang(), num_nodes=2, actors_per_node=3)
    for seq, limits, request, blobs, why in (
        (2, Limits(gang_size=5), r.AllocateGang(too_large, 0), b"", "a gang of 6"),
        (3, Limits(args_bytes=3), r.ReleaseGang("t-1"), b"four", "4 bytes"),
    ):
        refused = limited(limits, pool, request, seq, blobs)
        assert isinstance(refused, p.Failed)
        assert refused.code == "limit"
        assert why in refused.reason


def test_the_line_has_a_length_for_each_client_and_for_all(pool: MemoryPool) -> None:
    never = replace(gang(), num_nodes=50)
    for seq in (2, 3):
        pool.handle(r.Envelope(r.AllocateGang(never, None), "c", seq))
    assert len(pool.state.queue) == 2
    for seq, limits, why in ((4, Limits(client_waiting=2), "of this client"), (5, Limits(queue_length=2), "waiting")):
        refused = limited(limits, pool, r.AllocateGang(never, None), seq)
        assert isinstance(refused, p.Failed)
        assert why in refused.reason
    assert pool.answers["c", 2] == [], "those that wait go on waiting"


def test_a_limit_below_one_makes_no_sense() -> None:
    with pytest.raises(InvalidRequest, match="queue_length"):
        Limits(queue_length=0)


def test_a_flooding_client_loses_its_session_and_its_tickets(pool: MemoryPool) -> None:
    from spoke.allocator.decide import end_session

    pool.handle(r.Envelope(r.AllocateGang(gang(), 0), "c", 2))
    pool.record(end_session(pool.state, "c", 100))
    assert not pool.state.tickets
    assert any(isinstance(recorded.event, e.ClientLost) for recorded in pool.log)
    assert any(isinstance(notice, p.SessionLost) for notice in pool.notices["c"])
    assert end_session(pool.state, "c", 100) == []


def test_no_command_of_a_commit_has_more_arguments_than_lua_hands_on() -> None:
    """A client that held thousands of tickets is told of all of them at its end."""
    batch = Batch(Keys("p"))
    told: list[Effect] = [Tell("c", 0, p.Resync(())) for _ in range(5_000)]
    batch.event(e.Recorded("1-0", e.ClientLost("c", "gone")), told, Chain())
    _, packed = batch.sealed({}, {}, 0)
    commands = msgpack.unpackb(packed)
    assert max(len(command) for command in commands) < 4_000
    assert sum(command.count(0) for command in commands) == 5_000, "nothing is left out"
