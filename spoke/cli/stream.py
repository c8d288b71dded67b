"""Streaming the ranks' output: one thread that reads it from the nodes' agents as it grows, and prints it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from spoke.cli.output import Prefixer, complain, forget_output, wants_colours
from spoke.client.logs.reading import Begin, Feed, LogReader, Splitter
from spoke.events.model import Slot

NEWS_S = 5.0
LOOK_S = 2.0
AGAIN_S = 0.5
FINISH_S_MAX = 60.0


class OutputStream:
    """Prints what the ranks of a ticket print from now on. ``reader_left`` is called when nobody reads that."""

    def __init__(
        self, reader: LogReader, ticket_id: str, slots: Sequence[Slot], reader_left: Callable[[], None]
    ) -> None:
        self._reader, self._ticket_id, self._slots = reader, ticket_id, slots
        self._reader_left = reader_left
        self._feed = Feed(reader, ticket_id)
        self._lines = {slot.global_rank: Splitter() for slot in slots}
        self._prefixer = Prefixer(self._lines, wants_colours(1))
        self._told: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spoke-output", daemon=True)

    def start(self) -> None:
        """Start reading. The actors must not have been started."""
        ends: dict[tuple[str, int, str], int] = {}
        try:
            found, silent = self._reader.files(self._ticket_id, (slot.node_id for slot in self._slots))
            # an earlier pool of the same name may have left output there: that is not ours to print
            ends = {(node_id, one.rank, one.actor): one.end for node_id, files in found.items() for one in files}
            for answer in silent:
                self._tell(str(answer.error))
        except RedisError as error:
            self._tell(f"the output cannot be read yet: {error}")
        for slot in self._slots:
            rank, actor = slot.global_rank, f"rank-{slot.global_rank}"
            self._feed.add(slot.node_id, rank, actor, Begin(), ends.get((slot.node_id, rank, actor), 0))
        self._thread.start()

    def finish(self) -> None:
        """Print what is there still, and end. The actors must have ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._reader.interrupt()
            self._thread.join(FINISH_S_MAX + NEWS_S)
        self._reader.close()

    def where(self, rank: int) -> str:
        """For a message about a rank: how to have its output."""
        return f"; its output: spoke logs {self._ticket_id} --rank {rank}"

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._print_news(NEWS_S, LOOK_S)
            self._feed.hurry()
            deadline_s = time.monotonic() + FINISH_S_MAX
            while self._feed.behind() and time.monotonic() < deadline_s:
                self._print_news(0.0, 0.0)
            self._write(b"".join(self._prefixer.line(rank, line) for rank in self._lines for line in self._rest(rank)))
            for loss in self._feed.losses():
                self._tell(loss.in_all())
        except OSError:
            forget_output()
            self._reader_left()

    def _rest(self, rank: int) -> list[bytes]:
        return list(self._lines[rank].rest())

    def _print_news(self, news_s: float, wait_s: float) -> None:
        try:
            chunks = self._feed.read(news_s, wait_s)
        except RedisError as error:
            if not self._ended.wait(AGAIN_S):
                self._tell(f"the output cannot be read for now: {error}")
            self._feed.hurry()
            return
        out = bytearray()
        for chunk in chunks:
            for line in self._lines[chunk.rank].lines(chunk.data):
                out += self._prefixer.line(chunk.rank, line)
        self._write(out)  # before anything is told: if nobody reads any more, there is nothing to tell
        for problem in self._feed.errors.values():
            self._tell(str(problem))
        for loss in self._feed.losses() if not self._ended.is_set() else ():
            self._tell(loss.begun())
        for chunk in chunks:
            if chunk.lost:
                self._tell(f"{chunk.lost} bytes of rank {chunk.rank}'s output were rotated away before they were read")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            complain(text)

    def _write(self, out: bytes | bytearray) -> None:
        if out:
            sys.stdout.buffer.write(out)
            sys.stdout.buffer.flush()
