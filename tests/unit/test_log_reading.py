"""Reading output from afar, as far as it is pure or files only: asks and answers, the desk, the files, the feed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from spoke.agent.logs import files
from spoke.agent.logs.access import NAME, admit, key_of, may_read
from spoke.agent.logs.desk import Desk
from spoke.agent.logs.shelf import Shelf
from spoke.cli.logs import beginning
from spoke.client.logs.reading import LINE_BYTES_MAX, Answer, Begin, Feed, Splitter
from spoke.errors import Forbidden, InvalidRequest, LogsUnavailable
from spoke.events.codec import DecodeError
from spoke.protocol.identity import issue
from spoke.protocol.logs import (
    PIECE_BYTES_MAX,
    WAIT_MS_MAX,
    WANTED_MAX,
    Asked,
    LogsAnswer,
    Piece,
    ReadLogs,
    Wanted,
    decode_answer,
    decode_ask,
    encode_answer,
    encode_ask,
    log_key,
    opening,
)

MASTER = b"m" * 32
ALICE, BOB = issue(MASTER, "user", "alice"), issue(MASTER, "user", "bob")


def raw(fields: dict[str, Any]) -> dict[bytes, bytes]:
    return {name.encode(): v if isinstance(v, bytes) else str(v).encode() for name, v in fields.items()}


def asked(ask: ReadLogs, reader: str = "r-1", opens: bytes = b"", node_id: str = "n0") -> Asked:
    return decode_ask(raw(encode_ask(ask, reader, 7, opens=opens, pool="p", node_id=node_id)))


# --- the words --------------------------------------------------------------------------------------------------------


def test_an_ask_and_an_answer_come_through_as_they_were() -> None:
    ask = ReadLogs("t-1", (Wanted(0, "a", 17), Wanted(1, "b", tail=5)), 250)
    found = asked(ask)
    assert (found.ask, found.reader, found.seq) == (ask, "r-1", 7)
    answer = LogsAnswer((Piece(0, "a", 17, 3, 0, 20), Piece(1, "b", 0, 2, 0, 2)))
    assert decode_answer(raw(encode_answer(7, answer, b"abcde"))) == (7, answer, b"abcde")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"body": b"[]"},
        {"v": 2},
        {"reader": "../x"},
        {"reader": ""},
        {"seq": "x"},
        {"body": b'{"ticket_id":"../../etc"}'},
        {"body": b'{"ticket_id":"t","wanted":[{"rank":0,"actor":"../x"}]}'},
        {"body": b'{"ticket_id":"t","wanted":[{"rank":-1,"actor":"x"}]}'},
        {"body": b'{"ticket_id":"t","wanted":[{"rank":0,"actor":"x","offset":9223372036854775807}]}'},
        {"body": b"[" * 5_000},
        {"body": b'{"ticket_id":"t","wanted":[' + b",".join([b'{"rank":0,"actor":"x"}'] * (WANTED_MAX + 1)) + b"]}"},
    ],
)
def test_what_is_no_ask_is_refused(fields: dict[str, Any]) -> None:
    whole = encode_ask(ReadLogs("t-1"), "r-1", 1, opens=b"", pool="p", node_id="n0")
    with pytest.raises(DecodeError):
        decode_ask(raw({**whole, **fields} if fields else {}))


def test_an_answer_whose_pieces_do_not_add_up_is_refused() -> None:
    for size in (3, -1):
        with pytest.raises(DecodeError):
            decode_answer(raw(encode_answer(7, LogsAnswer((Piece(0, "a", 0, size, 0, 9),)), b"ab")))


# --- who may read -----------------------------------------------------------------------------------------------------


def test_output_is_for_the_user_who_launched(tmp_path: Path) -> None:
    directory = tmp_path / "t-1"
    admit(directory, log_key(ALICE, "p", "t-1"))
    assert (directory / NAME).stat().st_mode & 0o777 == 0o600
    shelf = Shelf(tmp_path, "p", "n0", key=issue(MASTER, "node", "n0"))
    shelf.check(asked(ReadLogs("t-1"), opens=log_key(ALICE, "p", "t-1")))
    for opens in (b"", log_key(BOB, "p", "t-1"), log_key(ALICE, "p", "t-2"), log_key(ALICE, "other", "t-1")):
        with pytest.raises(Forbidden, match="SPOKE_KEY"):
            shelf.check(asked(ReadLogs("t-1"), opens=opens))
    signed_for_another_node = asked(ReadLogs("t-1"), opens=log_key(ALICE, "p", "t-1"), node_id="n1")
    assert not may_read(signed_for_another_node, directory, "p", "n0")
    Shelf(tmp_path, "p", "n0", key=None).check(asked(ReadLogs("t-1")))


@pytest.mark.parametrize("held", ["n0", "*"])
def test_an_administrator_reads_the_output_of_every_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, held: str
) -> None:
    caplog.set_level("INFO", "spoke.agent")
    admit(tmp_path / "t-1", log_key(ALICE, "p", "t-1"))
    shelf = Shelf(tmp_path, "p", "n0", key=issue(MASTER, "node", held))
    ops = issue(MASTER, "admin", "ops")
    shelf.check(asked(ReadLogs("t-1"), opens=opening(ops, "p", "t-1", "n0")))
    assert "reads the output of ticket t-1" in caplog.text
    strangers = [issue(b"o" * 32, "admin", "ops"), issue(MASTER, "operator", "ops"), issue(MASTER, "node", "n1"), BOB]
    for key in (*strangers, None):
        with pytest.raises(Forbidden, match="administrators"):
            shelf.check(asked(ReadLogs("t-1"), opens=opening(key, "p", "t-1", "n0")))
    for opens in (opening(ops, "p", "t-1", "n1"), log_key(ops, "p", "t-1"), ops.reading):
        with pytest.raises(Forbidden):
            shelf.check(asked(ReadLogs("t-1"), opens=opens))
    assert issue(MASTER, "node", "n1").reading_of("n0") == b"", "a node's key opens no other node"


def test_what_another_users_ticket_of_the_same_name_left_is_put_aside(tmp_path: Path) -> None:
    directory = tmp_path / "t-1"
    admit(directory, b"of bob")
    (directory / "0-a.log").write_text("bob's")
    admit(directory, b"of bob")
    assert (directory / "0-a.log").exists()
    admit(directory, b"of alice")
    assert not (directory / "0-a.log").exists()
    assert key_of(directory) == b"of alice"
    (aside,) = tmp_path.glob("t-1.*")
    assert key_of(aside) == b"of bob", "who could read it before can still"


def test_without_keys_nothing_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "t-1").mkdir()
    admit(tmp_path / "t-1", b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "t-1"]


# --- the desk ---------------------------------------------------------------------------------------------------------


def test_a_reader_has_one_place_and_its_newest_ask_counts() -> None:
    desk = Desk(readers_max=2)
    assert desk.take(asked(ReadLogs("t-1"), "r-1"), 0.0)
    assert desk.take(asked(ReadLogs("t-2"), "r-1"), 0.0)
    assert [place.asked.ask.ticket_id for place in desk.due(0.0)] == ["t-2"]
    assert desk.take(asked(ReadLogs("t-3"), "r-2"), 0.0)
    assert not desk.take(asked(ReadLogs("t-4"), "r-3"), 0.0), "there is no third place"
    assert desk.take(asked(ReadLogs("t-5"), "r-2"), 0.0), "but who has one may ask anew"


def test_an_ask_waits_for_news_until_its_time_is_over_and_no_longer_than_the_limit() -> None:
    desk = Desk()
    desk.take(asked(ReadLogs("t-1", (Wanted(0, "a", 0),), wait_ms=10**9)), 100.0)
    (place,) = desk.due(100.0)
    assert not desk.may_answer(place, 100.0, news=False)
    assert desk.may_answer(place, 100.0, news=True)
    limit_s = WAIT_MS_MAX / 1000
    assert not desk.may_answer(place, 100.0 + limit_s - 0.1, news=False)
    assert desk.may_answer(place, 100.0 + limit_s, news=False)
    desk.answered(place, 0)
    assert len(desk) == 0
    assert desk.wait_s(101.0) is None, "and then there is nothing to do"


def test_what_goes_out_is_bounded_and_nobody_is_turned_away_for_it() -> None:
    desk = Desk(rate=1_000, burst=500)
    for reader in ("r-1", "r-2"):
        desk.take(asked(ReadLogs("t-1"), reader), 10.0)
    first, second = desk.due(10.0)
    desk.answered(first, 1_500)
    assert not desk.may_answer(second, 10.0 - 0.1, news=True)
    assert desk.due(10.5) == []
    wait_s = desk.wait_s(10.5)
    assert wait_s is not None
    assert wait_s == pytest.approx(0.5)
    assert desk.due(11.1) == [second]


def test_an_answer_to_a_replaced_ask_takes_nothing_from_the_new_one() -> None:
    desk = Desk()
    desk.take(asked(ReadLogs("t-1"), "r-1"), 0.0)
    (old,) = desk.due(0.0)
    desk.take(asked(ReadLogs("t-2"), "r-1"), 0.0)
    desk.answered(old, 10)
    assert [place.asked.ask.ticket_id for place in desk.due(0.0)] == ["t-2"]


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A log that was rotated twice, and whose first file is gone: bytes 10 to 29 are there."""
    for name, text in ((".10", "0123456789"), (".20", "abcde"), ("", "fghij")):
        (tmp_path / f"0-a.log{name}").write_text(text)
    (tmp_path / "0-ab.log").write_text("of another")
    (tmp_path / "10-a.log").write_text("of another")
    return str(tmp_path / "0-a.log")


def test_a_log_is_read_across_its_files(log: str) -> None:
    assert [(part.start, part.size) for part in files.segments(log)] == [(10, 10), (20, 5), (25, 5)]
    assert files.read(log, 12, 3) == files.Stretch(12, b"234", 10, 30)
    assert files.read(log, 18, 100).data == b"89", "no piece goes over a file's end"
    assert files.read(log, 20, 100).data == b"abcde"
    assert files.read(log, 27, 100).data == b"hij"
    assert files.read(log, 30, 100) == files.Stretch(30, b"", 10, 30)


def test_who_asks_for_what_is_gone_gets_the_oldest_that_is_there(log: str) -> None:
    assert files.read(log, 3, 4) == files.Stretch(10, b"0123", 10, 30)
    assert files.read(log, 99, 4).offset == 10, "of a log that was begun anew"
    assert files.read(log + "x", 3, 4) == files.Stretch(0, b"", 0, 0)


def test_the_last_lines_are_found_across_files(tmp_path: Path) -> None:
    path = tmp_path / "0-a.log"
    path.write_text("three\nfour\n")
    (tmp_path / "0-a.log.0").write_text("one\ntwo\nth")
    assert files.segments(str(path))[1].start == 10
    (tmp_path / "0-a.log").write_text("ree\nfour\n")
    found = {lines: files.offset_of_tail(str(path), lines) for lines in (0, 1, 2, 3, 9)}
    assert found == {0: 19, 1: 14, 2: 8, 3: 4, 9: 0}
    with open(path, "a") as more:
        more.write("fi")
    assert files.offset_of_tail(str(path), 1) == 19, "a line that is not ended counts"


def test_the_last_lines_are_looked_for_within_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "0-a.log"
    path.write_bytes(b"x" * (3 << 20))
    assert files.offset_of_tail(str(path), 5) == 2 << 20


def test_times_are_found_by_the_index(log: str) -> None:
    with open(files.index_path(log), "wb") as index:
        for mark in ((1_000, 0), (50_000, 0), (60_000, 12), (61_500, 20), (90_000, 27)):
            index.write(files.MARK.pack(*mark))
    found = {ms: files.offset_of_time(log, ms) for ms in (0, 60_500, 61_500, 62_600, 89_000, 91_000, 91_001)}
    assert found == {0: 10, 60_500: 12, 61_500: 20, 62_600: 27, 89_000: 27, 91_000: 27, 91_001: 30}


def test_without_an_index_the_time_of_the_last_write_decides(tmp_path: Path) -> None:
    path = tmp_path / "0-a.log"
    path.write_text("text")
    changed_ms = files.changed(str(path))
    assert files.offset_of_time(str(path), changed_ms - 1_000) == 0
    assert files.offset_of_time(str(path), changed_ms + 1_000) == 4


def test_a_piece_is_bounded_over_all_files_and_each_has_its_share(tmp_path: Path) -> None:
    (tmp_path / "t-1").mkdir()
    for rank in range(3):
        (tmp_path / "t-1" / f"{rank}-a.log").write_bytes(b"x" * (1_000 if rank == 0 else PIECE_BYTES_MAX))
    shelf = Shelf(tmp_path, "p", "n0", key=None)
    answer, data = shelf.answer(asked(ReadLogs("t-1", tuple(Wanted(rank, "a", 0) for rank in range(3)))))
    sizes = [piece.size for piece in answer.pieces]
    assert sizes[0] == 1_000
    assert sum(sizes) == len(data) == PIECE_BYTES_MAX, "what one does not need is the others'"
    assert min(sizes[1:]) > PIECE_BYTES_MAX // 3


def test_a_list_names_the_logs_and_nothing_else(log: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("key")
    shelf = Shelf(tmp_path.parent, "p", "n0", key=None)
    answer, _ = shelf.answer(asked(ReadLogs(tmp_path.name)))
    assert {(one.rank, one.actor, one.start, one.end) for one in answer.files} == {
        (0, "a", 10, 30),
        (0, "ab", 0, 10),
        (10, "a", 0, 10),
    }


# --- the reader -------------------------------------------------------------------------------------------------------


class ToldReader:
    """A reader whose agents answer what the test says."""

    def __init__(self) -> None:
        self.asks: dict[str, ReadLogs] = {}
        self.told: list[Answer] = []

    def is_asked(self, node_id: str) -> bool:
        return node_id in self.asks

    def ask(self, asks: Iterable[tuple[str, ReadLogs]]) -> None:
        self.asks.update(asks)

    def forget(self, node_id: str) -> None:
        self.asks.pop(node_id, None)

    def answers(self, wait_s: float) -> list[Answer]:
        found, self.told = self.told, []
        for answer in found:
            self.forget(answer.node_id)
        return found

    def piece(self, data: bytes, offset: int, end: int, node_id: str = "n0") -> None:
        self.told.append(Answer(node_id, LogsAnswer((Piece(0, "a", offset, len(data), 0, end),)), data))


def feed_of(reader: Any) -> Feed:
    return Feed(reader, "t-1")


def test_a_feed_asks_for_the_next_piece_only_when_the_last_one_came() -> None:
    reader = ToldReader()
    feed = feed_of(reader)
    feed.add("n0", 0, "a", Begin(tail=3))
    assert feed.read(5.0, 0.0) == []
    assert reader.asks["n0"] == ReadLogs("t-1", (Wanted(0, "a", -1, 3),), 5_000)
    reader.piece(b"abc", 10, 20)
    (chunk,) = feed.read(5.0, 0.0)
    assert (chunk.data, chunk.lost) == (b"abc", 0)
    feed.read(5.0, 0.0)
    assert reader.asks["n0"].wanted == (Wanted(0, "a", 13, 3),)


def test_a_feed_tells_of_what_was_rotated_away() -> None:
    reader = ToldReader()
    feed = feed_of(reader)
    feed.add("n0", 0, "a", Begin(), 5)
    reader.piece(b"xy", 100, 102)
    (chunk,) = feed.read(1.0, 0.0)
    assert (chunk.data, chunk.lost) == (b"xy", 95)


def test_a_feed_is_behind_until_everybody_has_answered_anew() -> None:
    reader = ToldReader()
    feed = feed_of(reader)
    feed.add("n0", 0, "a", Begin(), 0)
    feed.add("n1", 1, "b", Begin(), 0)
    feed.hurry()
    reader.piece(b"abc", 0, 6)
    feed.read(0.0, 0.0)
    assert feed.behind()
    reader.piece(b"def", 3, 6)
    feed.read(0.0, 0.0)
    assert feed.behind(), "the other node has not answered yet"
    reader.told.append(Answer("n1", LogsAnswer(), error=LogsUnavailable("silent")))
    feed.read(0.0, 0.0)
    assert not feed.behind(), "who is silent has nothing that could be waited for"
    assert "silent" in str(feed.errors["n1"])


def test_lines_are_whole_and_bounded() -> None:
    splitter = Splitter()
    assert list(splitter.lines(b"one\ntw")) == [b"one"]
    assert list(splitter.lines(b"o\n\nend")) == [b"two", b""]
    assert list(splitter.rest()) == [b"end"]
    assert list(splitter.rest()) == []
    assert [len(line) for line in splitter.lines(b"x" * (LINE_BYTES_MAX + 1))] == [LINE_BYTES_MAX + 1]


def test_since_is_a_span_or_a_time() -> None:
    assert beginning("", None) == Begin()
    assert beginning("10m", None) == Begin(age_ms=600_000)
    assert beginning("1.5h", None) == Begin(age_ms=5_400_000)
    assert beginning("1970-01-01T00:01:00Z", None) == Begin(since_ms=60_000)
    assert beginning("", 20) == Begin(tail=20)
    for since, tail in (("yesterday", None), ("10y", None), ("10m", 5)):
        with pytest.raises(InvalidRequest):
            beginning(since, tail)
