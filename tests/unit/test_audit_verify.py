"""Verifying: a planted violation is named with its first event; segments side by side give what they give in turn."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import structs

from bench.synthetic import chained, events
from spoke.events import archive as archives
from spoke.events import fold as folding
from spoke.events import segment, snapshot, stretches, walk
from spoke.events import types as e
from spoke.events.archive import Archive
from spoke.events.archived import ArchivedLog, StoredLog
from spoke.events.audit import verify
from spoke.events.fold import fold
from spoke.events.inspection import Inspector
from spoke.events.invariants import violations
from spoke.events.state import PoolState
from spoke.events.usage import BY, By, Ledger
from spoke.protocol import requests as r
from tests.builders import MemoryPool
from tests.golden import golden_pool
from tests.histories import MadeLog, Varied, busy_pool
from tests.unit.test_restarts import Play


def made(log: Iterable[e.Recorded]) -> MadeLog:
    return MadeLog(chained(log))


@pytest.fixture
def log() -> list[e.Recorded]:
    return golden_pool().log


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A synthetic log in six segments."""
    monkeypatch.setattr(archives, "SEGMENT_EVENTS", 150)
    found = Archive(tmp_path, "p")
    found.write(made(events(900, nodes=5)))
    assert len(found.segments()) == 6
    return found


# --- planted violations ------------------------------------------------------------------------------------------


def _allocated(log: list[e.Recorded], ticket_id: str) -> tuple[int, e.GangAllocated]:
    for at, recorded in enumerate(log):
        if isinstance(recorded.event, e.GangAllocated) and recorded.event.ticket_id == ticket_id:
            return at, recorded.event
    raise AssertionError(ticket_id)


def _half_a_gang(log: list[e.Recorded]) -> int:
    at, event = _allocated(log, "t-1")
    log[at] = structs.replace(log[at], event=structs.replace(event, slots=event.slots[:1]))
    return at


def _a_gpu_for_two(log: list[e.Recorded]) -> int:
    at, event = _allocated(log, "t-2")
    slots = tuple(structs.replace(slot, gpu_ids=(0,)) for slot in event.slots)
    log[at] = structs.replace(log[at], event=structs.replace(event, slots=slots))
    return at


def _one_rank_too_few_gpus(log: list[e.Recorded]) -> int:
    at, event = _allocated(log, "t-1")
    slots = (structs.replace(event.slots[0], gpu_ids=(), gpu_uuids=()), *event.slots[1:])
    log[at] = structs.replace(log[at], event=structs.replace(event, slots=slots))
    return at


def _released_while_it_runs(log: list[e.Recorded]) -> int:
    at = next(at for at, one in enumerate(log) if isinstance(one.event, e.GangReleasing)) + 1
    log.insert(at, e.Recorded(f"{log[at - 1].ms}-1", e.GangReleased("t-1", ("n1",), True)))
    return at


def _decided_twice(log: list[e.Recorded]) -> int:
    at = next(at for at, one in enumerate(log) if isinstance(one.event, e.GangReleasing))
    log.insert(at, e.Recorded(f"{log[at].ms - 1}-1", log[at].event))
    return at + 1


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (_half_a_gang, "I2: ticket t-1"),
        (_a_gpu_for_two, "handed out twice"),
        (_one_rank_too_few_gpus, "I2: rank 0"),
        (_released_while_it_runs, "may still run there"),
        (_decided_twice, "I5: request"),
    ],
)
def test_the_first_event_of_a_planted_violation_is_named(
    log: list[e.Recorded], plant: Callable[[list[e.Recorded]], int], words: str
) -> None:
    at = plant(log)
    report = verify(made(log))
    assert report.first_bad == log[at].id
    assert words in report.problems[0]


def _flip_a_gpu(state: PoolState) -> None:
    next(iter(state.nodes.values())).free_gpus ^= 1


def _forget_memory(state: PoolState) -> None:
    next(iter(state.nodes.values())).free_memory += 1


def _miscount_a_project(state: PoolState) -> None:
    state.queueing.charge("somebody", (1000, 0, 0, 1), 1, 0)


def _miscount_actors(state: PoolState) -> None:
    next(iter(state.tickets.values())).alive["node-0001"] = 77


def _lose_a_ticket(state: PoolState) -> None:
    next(iter(state.clients.values())).tickets.add("t-999999")


def _spoil_an_idle_node(state: PoolState) -> None:
    state.nodes["idle"].free_gpus = 0


FAULTS = [_spoil_an_idle_node, _flip_a_gpu, _forget_memory, _miscount_a_project, _miscount_actors, _lose_a_ticket]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("look_every", [50, 20_000])
def test_a_fold_that_does_wrong_where_nobody_looks_is_found_and_its_event_named(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[PoolState], None], look_every: int
) -> None:
    """The event touches nothing: a later one that does shows it, or the look at everything."""
    monkeypatch.setattr(walk, "LOOK_EVERY", look_every)
    log = list(events(400, nodes=10))
    quiet = replace(log[1].event.spec, node_id="idle")  # type: ignore[attr-defined]
    log.insert(11, e.Recorded(f"{log[10].ms}-1", e.NodeRegistered("idle", "i9", 1, quiet)))
    at = next(at for at, one in enumerate(log) if at > 250 and isinstance(one.event, e.GangReleased))
    bad = e.Recorded(f"{log[at].ms}-1", e.GangExplained("t-1", "c-0", 0))
    log.insert(at + 1, bad)
    monkeypatch.setitem(folding._HANDLERS, e.GangExplained, lambda state, event_id, event: fault(state))
    report = verify(made(log))
    assert report.first_bad == bad.id, report.problems
    assert "gang.explained" in report.problems[0]


@pytest.mark.parametrize("made", [lambda: busy_pool(7, False), lambda: busy_pool(7, True), lambda: Varied(7).pool])
def test_what_each_event_touched_is_in_order_in_random_histories(made: Callable[[], MemoryPool]) -> None:
    state = PoolState()
    inspector = Inspector(state)
    for recorded in made().log:
        fold(state, recorded)
        assert inspector.after(recorded.event) == []
    assert violations(state) == []


def test_a_gang_that_restarts_as_a_whole_is_in_order_at_every_event() -> None:
    play = Play()
    play.tell(0, r.ReportExited, code=3)
    play.halt_all()
    log = play.pool.log
    assert {"gang.restarting", "actor.halted", "gang.restarted"} <= {recorded.event.TYPE for recorded in log}
    state = PoolState()
    inspector = Inspector(state)
    for recorded in log:
        fold(state, recorded)
        assert inspector.after(recorded.event) == []
    ticket = state.tickets["t-1"]
    ticket.halting = {0}
    ticket.generation += 1
    assert "I11: ticket t-1 waits for the end of rank 0" in violations(state)[0]


@pytest.mark.parametrize("at", [50, 500, 1_500])
@pytest.mark.parametrize("name", ["free_cpu_milli", "free_memory"])
def test_a_node_that_is_booked_wrongly_is_named_by_the_next_event_that_touches_it(at: int, name: str) -> None:
    log = list(events(2_200, nodes=3))
    state = PoolState()
    for recorded in log[:at]:
        fold(state, recorded)
    inspector = Inspector(state)
    node = state.nodes["node-0001"]
    setattr(node, name, getattr(node, name) - 1)
    for recorded in log[at:]:
        event = recorded.event
        fold(state, recorded)
        found = inspector.after(event)
        if isinstance(event, (e.GangAllocated, e.GangReleased)) and "node-0001" in str(event):
            assert "I3: node node-0001" in found[0]
            return
        assert not found
    raise AssertionError("nothing touched it")


# --- segments ----------------------------------------------------------------------------------------------------


def test_every_segment_begins_with_the_state_before_it(archive: Archive) -> None:
    state, log = PoolState(), list(StoredLog(archive).read())
    for at, path in enumerate(archive.segments()):
        before = archive.before(path)
        assert before.state == snapshot.encode(state)
        for recorded in log[at * 150 : (at + 1) * 150]:
            fold(state, recorded)
    assert archive.before(archive.segments()[0]).h == ""


@pytest.mark.parametrize("by", BY)
def test_usage_from_the_nearest_segment_on_is_what_it_is_from_the_beginning(archive: Archive, by: By) -> None:
    stored, log = StoredLog(archive), list(StoredLog(archive).read())
    for at in (0, 149, 150, 400, 899):
        begin_ms, end_ms = log[at].ms, log[-1].ms + 1_000
        near, whole = Ledger(by, begin_ms, end_ms), Ledger(by, begin_ms, end_ms)
        base = stored.start(str(begin_ms - 1))
        rows = near.rows(base, stored.read(base.last_id))
        assert sorted(rows, key=str) == sorted(whole.rows(PoolState(), log), key=str)
        assert near.total == whole.total


def test_an_archive_that_is_continued_knows_the_state_between(tmp_path: Path) -> None:
    log = list(events(900, nodes=5))
    archive = Archive(tmp_path, "p")
    for end in (300, 600, 900):
        archive.write(made(log[:end]))
    assert len(archive.segments()) == 3
    assert verify(StoredLog(archive)).problems == []
    assert all(archive.before(path).state is not None for path in archive.segments())


def test_a_replay_begins_with_the_segment_that_holds_its_end(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, log, read = StoredLog(archive), list(StoredLog(archive).read()), list[Path]()
    true_read = segment.read

    def reading(path: Path, pool: str) -> Any:
        read.append(path)
        return true_read(path, pool)

    monkeypatch.setattr(segment, "read", reading)
    for at in (0, 3, 149, 150, 434, 899):
        state = PoolState()
        for recorded in log[: at + 1]:
            fold(state, recorded)
        read.clear()
        assert stored.replay(log[at].id) == state
        assert read == [archive.segments()[at // 150]]
    assert stored.replay() == stored.folded(stored.base())


@pytest.mark.parametrize("jobs", [1, 2])
def test_segments_are_verified_side_by_side(archive: Archive, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(stretches, "BYTES_ALONE", 0)
    log = list(StoredLog(archive).read())
    whole, report = verify(made(log)), verify(StoredLog(archive), jobs=jobs)
    assert report == replace_state(whole, report)
    assert report.state == whole.state


def test_a_hash_that_was_noted_is_looked_for_in_every_segment(archive: Archive) -> None:
    noted = next(fields for at, (_, fields) in enumerate(archive.raw()) if at == 470)[b"h"].decode()
    assert verify(StoredLog(archive), anchor=noted).ok
    assert "no event has the hash" in verify(StoredLog(archive), anchor="0" * 32).problems[0]


def test_segments_are_verified_up_to_a_moment(archive: Archive) -> None:
    moment = list(StoredLog(archive).read())[434].id
    until = verify(StoredLog(archive), moment)
    assert (until.events, until.last_id, until.state.last_id) == (435, moment, moment)


def replace_state(report: walk.Report, other: walk.Report) -> walk.Report:
    return walk.Report(
        *(report.events, report.first_id, report.last_id, report.last_hash, report.first_bad),
        *(report.counts, report.problems, other.state, report.broken_off, report.anchored),
    )


@pytest.mark.parametrize("size", [7, 10, 13])
def test_a_launch_that_goes_on_in_the_next_segment_is_one_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_EVENTS", size)
    log, archive = list(events(120, nodes=5)), Archive(tmp_path, "p")
    entries = list(chained(log))
    archive.write(MadeLog(entries))
    launches = [walk.launch_of(recorded.event) for recorded in log]
    ends = range(size, len(log), size)
    assert any(launches[end] is not None and launches[end - 1] == launches[end] for end in ends)
    assert verify(StoredLog(archive)).problems == []
    assert verify(ArchivedLog(MadeLog(entries), archive)).problems == []


def test_a_launch_that_comes_again_in_the_next_segment_is_a_second_decision() -> None:
    report = walk.Report(events=7, last_id="7-0", ends_in=("c", 3))
    report.go_on(walk.Report(events=1, first_id="8-0", last_id="8-0", goes_on=("c", 3), ends_in=("c", 3)))
    assert report.ok
    report.go_on(walk.Report(events=1, first_id="9-0", last_id="9-0", goes_on=("c", 2)))
    assert report.first_bad == "9-0"
    assert "I5: request 2 of client c" in report.problems[0]


def test_a_live_log_goes_on_where_its_archive_ends(archive: Archive) -> None:
    live = MadeLog(list(chained(events(990, nodes=5)))[870:])
    report = verify(ArchivedLog(live, archive))
    assert report.problems == []
    assert report.events == 990
    assert ArchivedLog(live, archive).replay() == report.state


def _rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a segment says of what comes before it, its checksum too, as somebody who knows how would."""
    from hashlib import blake2b

    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    head = orjson.loads(lines[0])
    change(head)
    lines[0] = orjson.dumps(head) + b"\n"
    footer = orjson.loads(lines[-1])
    footer["checksum"] = blake2b(b"".join(lines[:-1]), digest_size=32).hexdigest()
    path.write_bytes(gzip.compress(b"".join(lines[:-1]) + orjson.dumps(footer) + b"\n"))


def test_a_segment_that_begins_with_another_state_is_named(archive: Archive) -> None:
    path = archive.segments()[3]
    first = path.name.partition("_")[0]
    state = snapshot.decode(archive.before(path).state or b"")
    node = next(iter(state.nodes.values()))
    state.nodes[node.spec.node_id] = replace(node, spec=replace(node.spec, host="elsewhere"))
    good = path.read_bytes()
    _rewritten(path, lambda head: head.update(state=snapshot.encode(state).decode("latin-1")))
    report = verify(StoredLog(archive))
    assert report.first_bad == first
    assert "I8" in report.problems[0]
    assert path.name in report.problems[0]
    path.write_bytes(good)
    _rewritten(path, lambda head: head.update(h="0" * 32))
    report = verify(StoredLog(archive))
    assert report.first_bad == first
    assert "chain" in report.problems[0]


def test_a_segment_that_knows_no_state_is_verified_with_the_one_before_it(archive: Archive) -> None:
    whole = verify(StoredLog(archive))
    for at in (1, 3, 4):
        _rewritten(archive.segments()[at], lambda head: head.update(state=None))
    report = verify(StoredLog(archive))
    assert (report.problems, report.events, report.last_hash) == ([], whole.events, whole.last_hash)
    assert report.state == whole.state
    assert StoredLog(archive).replay() == whole.state


def test_what_this_release_cannot_read_is_archived_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_EVENTS", 100)
    entries = list(chained(events(350, nodes=5)))
    entries[150] = (entries[150][0], {b"type": b"gang.teleported", b"v": b"1", b"h": entries[150][1][b"h"]})
    archive = Archive(tmp_path, "p")
    archive.write(MadeLog(entries[:320]))
    archive.write(MadeLog(entries))
    assert list(archive.raw()) == entries
    known = [archive.before(path).state is not None for path in archive.segments()]
    assert known == [True, True, False, False, False]
    report = verify(StoredLog(archive))
    assert report.first_bad == entries[150][0]
    assert report.events == 150
