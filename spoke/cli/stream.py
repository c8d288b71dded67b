"""Streaming the ranks' output: one thread that reads the files of this machine's ranks as they grow."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

from spoke.cli.files import GrowingFile, Place, Prefixer, size_of, wants_colours
from spoke.cli.output import complain, forget_output

POLL_S = 0.05
FLUSH_BYTES = 1 << 16
FINISH_S_MAX = 60.0


class OutputStream:
    """Prints what appears in the files from now on. ``reader_left`` is called when nobody reads what it prints."""

    def __init__(self, places: Sequence[Place], reader_left: Callable[[], None]) -> None:
        self._places = {place.rank: place for place in places}
        self._reader_left = reader_left
        # an earlier pool of the same name may have left files there: theirs is not ours to print
        self._files = {place.rank: GrowingFile(place.path, size_of(place.path)) for place in places if place.here}
        self._prefixer = Prefixer(self._places, wants_colours(1))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spoke-output", daemon=True)

    def start(self) -> None:
        """Start reading; says on standard error where the output of other machines' ranks is."""
        for place in self._places.values():
            if not place.here:
                complain(place.elsewhere.replace(" ran ", " runs ", 1))
        self._thread.start()

    def finish(self) -> None:
        """Print what is there still, and end. The actors must have ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(FINISH_S_MAX)

    def where(self, rank: int) -> str:
        """For a message about a rank: where its output is."""
        place = self._places.get(rank)
        if place is None or not place.path:
            return ""
        return f"; its output is in {place.path}" if place.here else f"; its output is at {place.host}:{place.path}"

    def _run(self) -> None:
        try:
            last = False
            while not last:
                last = self._ended.wait(POLL_S)
                self._print_news(last)
        except OSError:
            forget_output()
            self._reader_left()
        finally:
            for file in self._files.values():
                file.close()

    def _print_news(self, last: bool) -> None:
        out, found = bytearray(), False
        for rank, file in self._files.items():
            for line in file.lines():
                out += self._prefixer.line(rank, line)
                if len(out) > FLUSH_BYTES:
                    self._write(out)
                    found = True
            if last:
                for line in file.rest():
                    out += self._prefixer.line(rank, line)
        if out or found:
            self._write(out)

    def _write(self, out: bytearray) -> None:
        sys.stdout.buffer.write(out)
        sys.stdout.buffer.flush()
        out.clear()
