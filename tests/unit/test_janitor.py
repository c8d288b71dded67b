"""What is removed of tickets' output, and when."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from spoke.agent.logs.access import NAME
from spoke.agent.logs.janitor import Cupboard
from spoke.agent.logs.room import parse_room
from spoke.errors import InvalidRequest

KEEP_S = 100.0
NOW_S = 1_000_000.0


@pytest.fixture
def cupboard(tmp_path: Path) -> Cupboard:
    return Cupboard(tmp_path, KEEP_S)


def put(log_dir: Path, ticket_id: str, age_s: float, *names: str) -> Path:
    """A ticket's directory whose files are so old."""
    directory = log_dir / ticket_id
    directory.mkdir()
    for name in names or ("0-a.log", "0-a.log.500", "0-a.idx", NAME):
        (directory / name).write_text("x")
        os.utime(directory / name, (NOW_S - age_s, NOW_S - age_s))
    os.utime(directory, (NOW_S - age_s, NOW_S - age_s))
    return directory


def test_output_is_removed_when_its_time_is_over(cupboard: Cupboard, tmp_path: Path) -> None:
    old, young = put(tmp_path, "t-1", KEEP_S + 1), put(tmp_path, "t-2", KEEP_S - 1)
    for ticket_id in cupboard.unsure():
        cupboard.ended(ticket_id)
    assert cupboard.unsure() == []
    assert cupboard.clear(NOW_S) == ["t-1"]
    assert not old.exists()
    assert len(list(young.iterdir())) == 4
    assert cupboard.clear(NOW_S + 2) == ["t-2"]


def test_the_time_begins_with_the_tickets_end_and_not_with_its_last_word(cupboard: Cupboard, tmp_path: Path) -> None:
    silent = put(tmp_path, "t-1", 50 * KEEP_S)
    cupboard.live("t-1")
    seen_s = silent.stat().st_mtime
    assert seen_s > NOW_S, "it was seen to live just now"
    cupboard.ended("t-1")
    assert cupboard.clear(seen_s + KEEP_S - 1) == []
    assert cupboard.clear(seen_s + KEEP_S + 1) == ["t-1"]


def test_of_a_ticket_that_is_not_known_to_have_ended_nothing_is_removed(cupboard: Cupboard, tmp_path: Path) -> None:
    put(tmp_path, "t-1", 50 * KEEP_S)
    assert cupboard.clear(NOW_S) == []


def test_what_is_still_written_is_left_alone(cupboard: Cupboard, tmp_path: Path) -> None:
    directory = put(tmp_path, "t-1", KEEP_S + 1)
    cupboard.ended("t-1")
    fd = os.open(directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert cupboard.clear(NOW_S) == []
    os.close(fd)
    assert cupboard.clear(NOW_S) == ["t-1"]


def test_where_room_is_short_the_oldest_output_of_ended_tickets_goes_first(cupboard: Cupboard, tmp_path: Path) -> None:
    for name, age_s in (("t-1", 90.0), ("t-2", 80.0), ("t-3", 70.0), ("t-4", 95.0), ("t-5", 1.0)):
        put(tmp_path, name, age_s, "0-a.log", "0-a.idx")
        (tmp_path / name / "0-a.log").write_text("x" * 999)
        os.utime(tmp_path / name / "0-a.log", (NOW_S - age_s, NOW_S - age_s))
    for name in ("t-1", "t-2", "t-3", "t-5"):
        cupboard.ended(name)
    assert cupboard.shrink(5_000, NOW_S) == ([], 5_000)
    assert cupboard.shrink(None, NOW_S) == ([], 5_000)
    assert cupboard.shrink(3_999, NOW_S) == (["t-1", "t-2"], 3_000)
    assert cupboard.shrink(1, NOW_S) == (["t-3"], 2_000), "one lives, and one has ended this moment"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t-4", "t-5"]


@pytest.mark.parametrize("text", ["", "0%", "101%", "1023KiB", "-1", "20 %", "x"])
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_room(text)


def test_a_share_is_one_of_the_filesystem(tmp_path: Path) -> None:
    assert parse_room("25%").bytes_of(tmp_path) == shutil.disk_usage(tmp_path).total // 4
    assert parse_room("25%").bytes_of(tmp_path / "absent") is None
    assert parse_room("off").bytes_of(tmp_path) is None
    assert parse_room("1GiB").bytes_of(tmp_path / "absent") == 1 << 30


def test_what_is_not_ours_stays(cupboard: Cupboard, tmp_path: Path) -> None:
    foreign = put(tmp_path, "photos", 50 * KEEP_S, "cat.jpg", "notes.log")
    mixed = put(tmp_path, "t-1", 50 * KEEP_S, "0-a.log", "notes.txt")
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "link").symlink_to(foreign)
    names = cupboard.unsure()
    assert sorted(names) == ["photos", "t-1"]
    for name in names:
        cupboard.ended(name)
    cupboard.live("photos")
    assert cupboard.clear(NOW_S) == ["t-1"]
    assert sorted(path.name for path in foreign.iterdir()) == ["cat.jpg", "notes.log"]
    assert foreign.stat().st_mtime < NOW_S, "not even touched"
    assert [path.name for path in mixed.iterdir()] == ["notes.txt"]
