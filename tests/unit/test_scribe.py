"""The scribe's part that writes: rotation, the index, a disk that is full; and the whole scribe at a socket."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from spoke.agent.logs import files, scribe
from spoke.agent.logs.scribe import LogWriter, Scribe


def whole(path: Path) -> bytes:
    """All that is there of a log."""
    parts = files.segments(str(path))
    assert all(before.end == after.start for before, after in pairwise(parts)), parts
    return b"".join(Path(part.path).read_bytes() for part in parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t-1" / "0-a.log"


def test_rotation_loses_nothing_but_the_oldest_files(path: Path) -> None:
    writer = LogWriter(str(path), 1_000, 2)
    lines = [b"line %d\n" % number for number in range(1_000)]
    for line in lines:
        writer.write(line)
    writer.close()
    parts = files.segments(str(path))
    assert len(parts) == 3
    assert all(1_000 <= part.size < 1_020 for part in parts[:-1])
    assert parts[-1].end == sum(map(len, lines)), "offsets count what was removed, too"
    assert b"".join(lines).endswith(whole(path))


def test_files_are_cut_at_the_end_of_a_line_where_there_is_one(path: Path) -> None:
    writer = LogWriter(str(path), 10, 1)
    for data in (b"0123456789ab", b"cd\nefgh", b"x" * 20, b"y" * 5):
        writer.write(data)
    writer.close()
    assert [Path(part.path).read_bytes() for part in files.segments(str(path))] == [b"efgh" + b"x" * 20, b"y" * 5]


def test_a_log_that_is_opened_again_goes_on_where_it_ended(path: Path) -> None:
    for text in (b"one\n", b"two\n", b"three\n"):
        writer = LogWriter(str(path), 8, 1)
        writer.write(text)
        writer.close()
    assert whole(path) == b"one\ntwo\nthree\n"
    assert [part.start for part in files.segments(str(path))] == [0, 14]


def test_the_index_finds_what_was_written_since(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(str(path), 1 << 20, 1)
    for second in range(100):
        monkeypatch.setattr(scribe, "now_ms", lambda second=second: 1_000_000 + second * 1_000)
        writer.write(b"%06d\n" % second)
    writer.close()
    assert files.offset_of_time(str(path), 1_000_000) == 0
    assert 48 * 7 <= files.offset_of_time(str(path), 1_050_000) <= 50 * 7
    assert files.offset_of_time(str(path), 1_200_000) == 700


def test_marks_are_no_nearer_than_the_resolution(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "now_ms", lambda: 5_000_000)
    writer = LogWriter(str(path), 1 << 20, 1)
    for _ in range(100):
        writer.write(b"x\n")
    writer.close()
    assert files.read_index(files.index_path(str(path)))[1] == [(5_000_000, 0)]


def test_the_index_is_bounded_and_no_time_is_missed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "MARKS_MAX", 16)
    writer = LogWriter(str(path), 1 << 20, 1)
    for second in range(500):
        monkeypatch.setattr(scribe, "now_ms", lambda second=second: 1_000_000 + second * 1_000)
        writer.write(b"%06d\n" % second)
    writer.close()
    resolution_ms, marks = files.read_index(files.index_path(str(path)))
    assert len(marks) <= 16
    for second in range(0, 500, 7):
        offset = files.offset_of_time(str(path), 1_000_000 + second * 1_000)
        assert 0 <= second * 7 - offset <= 7 * (2 * resolution_ms // 1_000), "as much too early as the index is coarse"


def test_a_full_disk_costs_output_and_the_log_says_how_much(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = LogWriter(str(path), 1 << 20, 1)
    writer.write(b"before\n")
    real, full = os.write, True

    def write(fd: int, data: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data)

    monkeypatch.setattr(scribe.os, "write", write)
    for _ in range(10):
        writer.write(b"0123456789")
    full = False
    writer.write(b"too soon\n")
    monkeypatch.setattr(writer, "_again_s", 0.0)
    writer.write(b"after\n")
    writer.close()
    text = whole(path).decode()
    assert text.startswith("before\n")
    assert "109 bytes of output were lost here: No space left on device" in text
    assert text.endswith("]\nafter\n")
    said = capfd.readouterr().err
    assert said == f"spoke: output that belongs into {path} is lost until it can be written: No space left on device\n"


def test_of_a_write_that_was_cut_short_only_the_rest_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(str(path), 1 << 20, 1)
    writer.write(b"before\n")
    real, room = os.write, 4

    def write(fd: int, data: Any) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "full")
        written = real(fd, bytes(data)[:room])
        room -= written
        return written

    monkeypatch.setattr(scribe.os, "write", write)
    writer.write(b"0123456789")
    assert (writer.lost, writer.why) == (6, "No space left on device")
    writer.close()
    assert writer.lost == 6, "nothing could be said yet"
    assert whole(path) == b"before\n0123"


def test_a_log_that_cannot_be_opened_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t-1").write_text("a file where the directory should be")
    writer = LogWriter(str(tmp_path / "t-1" / "0-a.log"), 1 << 20, 1)
    writer.write(b"lost")
    (tmp_path / "t-1").unlink()
    monkeypatch.setattr(writer, "_again_s", 0.0)
    writer.write(b"written\n")
    writer.close()
    text = (tmp_path / "t-1" / "0-a.log").read_text()
    assert "4 bytes of output were lost" in text
    assert text.endswith("written\n")


# --- the loop ---------------------------------------------------------------------------------------------------------


class Keeper:
    """The keeper's end, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)

    def open(self, launch_id: str, path: Path) -> int:
        read, write = os.pipe()
        message = {"do": "open", "id": launch_id, "log": str(path), "bytes": 1 << 20, "files": 1}
        socket.send_fds(self.sock, [json.dumps(message).encode()], [read])
        os.close(read)
        return write

    def lost(self) -> tuple[str, int, str]:
        """What it says next: of which log something is lost, how much, and why."""
        said = json.loads(self.sock.recv(1 << 16))
        assert said["is"] == "lost"
        return said["log"], said["bytes"], said["why"]

    def finish(self, launch_id: str) -> str:
        self.sock.send(json.dumps({"do": "finish", "id": launch_id}).encode())
        said = json.loads(self.sock.recv(1 << 16))
        assert (said["is"], said["id"]) == ("finished", launch_id)
        return str(said["tail"])


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=Scribe(theirs).run)
    thread.start()
    yield Keeper(ours)
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()


def test_what_is_printed_stands_in_the_log_before_the_end_is_told(keeper: Keeper, path: Path) -> None:
    write = keeper.open("1", path)
    os.write(write, b"x" * 60_000 + b"\nthe last line\n")
    os.close(write)
    tail = keeper.finish("1")
    assert whole(path).endswith(b"the last line\n")
    assert len(whole(path)) == 60_015
    assert tail.endswith("the last line")
    assert len(tail) < 2_001


def test_a_pipe_that_somebody_still_holds_delays_no_end(keeper: Keeper, path: Path) -> None:
    write = keeper.open("1", path)
    os.write(write, b"text\n")
    assert keeper.finish("1") == "text"
    with pytest.raises(BrokenPipeError):
        os.write(write, b"too late")
    os.close(write)
    assert keeper.finish("1") == "", "finished twice, or not known to a new scribe"


def test_what_is_lost_is_told_at_once_and_stands_in_the_log_when_there_is_room_also_after_the_end(
    keeper: Keeper, path: Path
) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    full = "No space left on device"
    write = keeper.open("1", path)
    os.write(write, b"lost\n")
    assert keeper.lost() == (str(path), 5, full)
    os.write(write, b"lost, too\n")
    os.close(write)
    keeper.sock.send(json.dumps({"do": "finish", "id": "1"}).encode())
    assert keeper.lost() == (str(path), 15, full)
    assert json.loads(keeper.sock.recv(1 << 16)) == {"is": "finished", "id": "1", "tail": "lost\nlost, too"}
    path.unlink()
    assert keeper.lost() == (str(path), 0, full)
    assert whole(path) == b"\n[spoke: 15 bytes of output were lost here: No space left on device]\n"


def test_one_that_prints_without_end_does_not_starve_the_others(keeper: Keeper, path: Path, tmp_path: Path) -> None:
    loud, quiet = keeper.open("1", path), keeper.open("2", tmp_path / "t-1" / "1-b.log")
    stop = threading.Event()

    def shout() -> None:
        while not stop.is_set():
            os.write(loud, b"y\n" * 30_000)

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        os.write(quiet, b"quiet\n")
        until_s = time.monotonic() + 10
        while whole(tmp_path / "t-1" / "1-b.log") != b"quiet\n":
            assert time.monotonic() < until_s
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join(10)
        os.close(loud)
        os.close(quiet)
    assert keeper.finish("2") == "quiet"


def test_when_the_keeper_is_gone_what_is_left_is_written(path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    played = Keeper(ours)
    write = played.open("1", path)
    os.write(write, b"the rest\n")
    os.close(write)
    ours.close()
    Scribe(theirs).run()
    theirs.close()
    assert whole(path) == b"the rest\n"
