"""The hash chain and the archive on a real log: what was tampered with is named, what is archived can be replayed."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.synthetic import chained, events
from spoke.cli.audit_restore import write_back
from spoke.cli.embedded import EmbeddedServer
from spoke.events import archive as archives
from spoke.events import segment
from spoke.events.archive import SUFFIX, Archive, BadSegment
from spoke.events.archived import ArchivedLog, StoredLog
from spoke.events.audit import verify
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.builders import gang
from tests.fakes import eventually
from tests.histories import MadeLog
from tests.integration.test_allocator_log import Asker, allocator, register


class Pool:
    """A pool with a log of some length."""

    def __init__(self, url: str, name: str, client_id: str = "asker") -> None:
        self._client_id = client_id
        self.url, self.name, self.keys, self.redis = url, name, Keys(name), connect(url)
        self.log = EventLog(self.redis, self.keys.events, self.keys.snapshot)
        self._asker: Asker | None = None

    def live(self, rounds: int, **options: Any) -> None:
        """A term of an allocator, in which gangs come and go."""
        with allocator(self.url, self.name, **options):
            if self._asker is None:
                register(self.redis, self.keys, "n1")
                self._asker = Asker(self.redis, self.keys, self._client_id)
            for _ in range(rounds):
                granted = self._asker.ask(r.AllocateGang(gang(), 0))
                assert isinstance(granted, p.Granted)
                assert self._asker.ask(r.ReleaseGang(granted.ticket_id)) == p.Done(True)


@pytest.fixture
def made(shared_server: EmbeddedServer, pool: str) -> Pool:
    return Pool(shared_server.url, pool)


# --- the chain ---------------------------------------------------------------------------------------------------


def _rewrite(redis: Redis, key: str, change: Callable[[list[Any]], None]) -> None:
    entries: Any = redis.xrange(key)
    change(entries)
    redis.delete(key)
    for entry_id, fields in entries:
        redis.xadd(key, fields, id=entry_id)


def _alter(entries: list[Any]) -> None:
    entries[10][1][b"client_id"] = b"somebody-else"


def _remove(entries: list[Any]) -> None:
    del entries[10]


def _insert(entries: list[Any]) -> None:
    ms, seq = entries[9][0].split(b"-")
    entries[10:] = []  # what comes after it may stand in the same millisecond
    entries.append((b"%s-%d" % (ms, int(seq) + 1), dict(entries[9][1])))


def _strip(entries: list[Any]) -> None:
    del entries[10][1][b"h"]


@pytest.mark.parametrize("change", [_alter, _remove, _insert, _strip])
def test_the_first_event_that_was_tampered_with_is_named(made: Pool, change: Callable[[list[Any]], None]) -> None:
    made.live(10)
    clean = verify(made.log)
    assert clean.problems == []
    assert len(clean.last_hash) == 32
    _rewrite(made.redis, made.keys.events, change)
    report = verify(made.log)
    first_bad = made.redis.xrange(made.keys.events)[10][0].decode()  # type: ignore[index]
    assert report.first_bad == first_bad
    assert first_bad in report.problems[0]
    assert "chain" in report.problems[0] or "no hash" in report.problems[0]


def test_a_chain_made_anew_is_found_by_a_hash_noted_before(made: Pool) -> None:
    made.live(3)
    noted = verify(made.log).last_hash
    made.live(3)
    assert verify(made.log, anchor=noted).problems == [], "it stands in the middle now"
    made.redis.delete(made.keys.events, made.keys.snapshot, made.keys.leader)
    made.live(0)
    assert any("made anew" in problem for problem in verify(made.log, anchor=noted).problems)


def test_the_chain_goes_on_over_terms_snapshots_and_trimming(made: Pool) -> None:
    for _ in range(3):
        made.live(60, snapshot_every=40, keep_events=80)
    assert made.log.base().last_id != "0-0", "it was trimmed"
    assert verify(made.log).problems == []


# --- the archive -------------------------------------------------------------------------------------------------


def test_the_log_is_trimmed_behind_the_archive_only_and_nothing_is_lost(made: Pool, tmp_path: Path) -> None:
    archive, options = Archive(tmp_path / "archive", made.name), {"snapshot_every": 40, "keep_events": 80}
    made.live(20)
    assert len(archive.write(made.log)) == 1
    made.log.mark_archived(archive.last_id())
    whole = ArchivedLog(made.log, archive)
    for _ in range(3):
        made.live(60, **options)
        assert made.redis.xlen(made.keys.events) > 80, "what is not archived is kept"
        assert len(archive.write(made.log)) == 1
        made.log.mark_archived(archive.last_id())
        report = verify(whole)
        assert report.problems == []
        assert report.first_id != ""
    made.live(60, **options)
    assert made.log.base().last_id != "0-0", "what is archived is trimmed"
    assert made.redis.xlen(made.keys.events) < report.events
    report = verify(whole)
    assert report.problems == []
    assert report.counts["gang.allocated"] == 20 + 4 * 60
    assert whole.replay() == made.log.recover()
    middle = archive.segments()[1].name.partition("_")[0]
    assert whole.replay(middle).last_id == middle, "the past is still there"
    assert archive.write(made.log), "and it goes on"
    assert archive.write(made.log) == []


def test_an_archive_that_takes_longer_than_the_next_snapshots_still_lets_the_log_be_trimmed(
    made: Pool, tmp_path: Path
) -> None:
    archive, options = Archive(tmp_path, made.name), {"snapshot_every": 40, "keep_events": 80}
    bases = set()
    for _ in range(3):
        made.live(20, **options)
        archive.write(made.log)
        archived = archive.last_id()
        made.log.mark_archived(made.log.base().last_id)
        made.live(60, **options)  # several snapshots are written before the archive is known to have been made
        made.log.mark_archived(archived)
        made.live(30, **options)
        bases.add(made.log.base().last_id)
        assert verify(ArchivedLog(made.log, archive)).problems == []
    assert len(bases - {"0-0"}) == 3, "each archive was followed by a trim"
    assert verify(made.log).problems == []


def test_an_archive_may_begin_on_a_log_that_was_trimmed(made: Pool, tmp_path: Path) -> None:
    made.live(150, snapshot_every=40, keep_events=80)
    archive = Archive(tmp_path, made.name)
    archive.write(made.log)
    assert archive.base() == made.log.base()
    assert archive.base().last_id != "0-0"
    assert verify(ArchivedLog(made.log, archive)).problems == []


def test_a_segment_that_was_changed_cut_or_lost_is_named(made: Pool, tmp_path: Path) -> None:
    archive = Archive(tmp_path, made.name)
    for _ in range(3):
        made.live(5)
        archive.write(made.log)
    whole, (first, second, third) = ArchivedLog(made.log, archive), archive.segments()
    assert verify(whole).problems == []
    good = second.read_bytes()
    plain = gzip.decompress(good)
    for bad in (
        gzip.compress(plain.replace(b"asker", b"other", 1)),
        good[: len(good) // 2],
        b"no gzip",
        b"",
        gzip.compress(plain + b"{}\n"),
        gzip.compress(plain.replace(b'"version":3', b'"version":9')),
        gzip.compress(b"[]\n" * 3),
    ):
        second.write_bytes(bad)
        with pytest.raises(BadSegment, match=second.name):
            list(archive.raw())
    second.unlink()
    report = verify(whole)
    assert report.first_bad == third.name.partition("_")[0]
    first.unlink()
    third.unlink()


def test_an_event_that_was_changed_in_the_archive_together_with_its_checksum_is_named(
    made: Pool, tmp_path: Path
) -> None:
    archive = Archive(tmp_path, made.name)
    for _ in range(3):
        made.live(5)
        archive.write(made.log)
    made.live(5)  # these stand in the server only
    whole = ArchivedLog(made.log, archive)
    assert verify(whole).problems == []
    second = archive.segments()[1]
    first_id, _, last_id = second.name.removesuffix(SUFFIX).partition("_")
    entries = [entry for entry in archive.raw() if order_of(first_id) <= order_of(entry[0]) <= order_of(last_id)]
    at = next(at for at, (_, fields) in enumerate(entries) if at > 2 and b"client_id" in fields)
    entries[at] = (entries[at][0], {**entries[at][1], b"client_id": b"somebody-else"})
    segment.write(second, made.name, entries, archive.before(second))
    report = verify(whole)
    assert report.first_bad == entries[at][0]
    assert "chain" in report.problems[0]


def test_an_archive_of_another_log_is_not_continued(made: Pool, tmp_path: Path) -> None:
    made.live(5)
    archive = Archive(tmp_path, made.name)
    archive.write(made.log)
    made.redis.delete(made.keys.events)
    with pytest.raises(BadSegment, match="another log"):
        archive.write(made.log)
    with pytest.raises(BadSegment, match="but is of pool"):
        list(Archive(tmp_path, "another").raw())


def test_a_restored_pool_goes_on_where_its_archive_ended(made: Pool, tmp_path: Path) -> None:
    for _ in range(3):
        made.live(60, snapshot_every=40, keep_events=80)
    archive = Archive(tmp_path, made.name)
    archive.write(made.log)
    assert archive.base().last_id != "0-0", "the archive does not begin with the log"
    stored = StoredLog(archive)
    report = verify(stored)
    assert report.problems == []
    other = Pool(made.url, f"{made.name}-anew", "another")
    assert write_back(other.redis, other.keys, stored, report) == report.events
    assert other.redis.hget(other.keys.snapshot, "id") == report.last_id.encode(), "allocators begin at its end"
    assert other.log.recover() == made.log.recover()
    other.live(5)
    after = verify(other.log)
    assert after.problems == []
    assert after.state.epoch == report.state.epoch + 1
    assert after.counts["server.changed"] == report.counts["server.changed"], "it is the same server"


DRIVER = """
import sys
from pathlib import Path
from spoke.events import stretches
from spoke.events.archived import StoredLog
from spoke.events.archive import Archive
from spoke.events.audit import verify
stretches.BYTES_ALONE = 0
print(verify(StoredLog(Archive(Path(sys.argv[1]), "p")), jobs=2).ok)
"""


def _children(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize("sign", [None, signal.SIGKILL, signal.SIGINT])
def test_those_who_verify_segments_end_with_the_one_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals | None
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_EVENTS", 2_000)
    Archive(tmp_path, "p").write(MadeLog(chained(events(8_000))))
    words = [sys.executable, "-c", DRIVER, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    eventually(lambda: len(_children(process.pid)) >= 2, "it has workers", 30)
    workers = _children(process.pid)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as Ctrl-C does
    elif sign is not None:
        process.send_signal(sign)
    out, _ = process.communicate(timeout=60)
    assert ("True" in out) == (sign is None)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers have ended", 30)
