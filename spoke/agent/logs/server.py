"""Serves actors' output to whoever asks for it: one thread takes the asks in, one looks at the files and answers.

Apart from the agent's other conversations with the server, with connections of their own: whoever reads, and however
much, delays no order and no lease. While nobody asks, neither thread does anything but wait.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import time

from spoke.agent.conversation import Conversation, Outage
from spoke.agent.logs.desk import READERS_MAX, Desk, Place
from spoke.agent.logs.shelf import Shelf
from spoke.agent.watcher import LogWatcher
from spoke.errors import Forbidden, LimitExceeded, LogsUnavailable
from spoke.events.codec import DecodeError
from spoke.events.ids import ms_of
from spoke.protocol.keys import Keys
from spoke.protocol.logs import (
    REPLIES_KEPT_MS,
    Asked,
    LogsAnswer,
    decode_ask,
    encode_answer,
)
from spoke.protocol.server import read_stream

log = logging.getLogger("spoke.agent")

BLOCK_MS = 1_000
BATCH_MAX = 64
IDLE_S = 1.0


class LogServer:
    """The two threads."""

    def __init__(
        self, url: str, keys: Keys, node_id: str, outage: Outage, shelf: Shelf, watcher: LogWatcher | None = None
    ) -> None:
        self._asks: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._intake = _Intake(url, keys, node_id, outage, self._asks)
        self._counter = _Counter(url, keys, node_id, outage, self._asks, shelf, watcher)

    def start(self) -> None:
        """Begin."""
        self._counter.start()
        self._intake.start()

    def stop(self) -> None:
        """End the threads."""
        self._intake.stop()
        self._counter.stop()


MS_MAX = 2**64 - 1


class _Intake(Conversation):
    """Reads asks and deletes them; what stands in the stream is what is still to be read."""

    def __init__(
        self, url: str, keys: Keys, node_id: str, outage: Outage, asks: queue.SimpleQueue[Asked | None]
    ) -> None:
        super().__init__("log-asks", url, keys, outage, timeout_s=BLOCK_MS / 1000 + 5.0)
        self._stream, self._asks = keys.logs(node_id), asks

    def _turn(self) -> bool:
        found = read_stream(self._client, self._stream, "0", block_ms=BLOCK_MS, count=BATCH_MAX)
        if found:
            self._client.xdel(self._stream, *(entry_id for entry_id, _ in found))
            if ms_of(found[-1][0].decode()) == MS_MAX:
                self._client.delete(self._stream)  # the ids are used up: else nobody could ask any more
        for _, fields in found:
            try:
                self._asks.put(decode_ask(fields))
            except DecodeError as error:
                log.debug("%s", error)
        return True


class _Counter(Conversation):
    """Looks at the files for which readers wait, and answers."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        node_id: str,
        outage: Outage,
        asks: queue.SimpleQueue[Asked | None],
        shelf: Shelf,
        watcher: LogWatcher | None,
    ) -> None:
        super().__init__("log-answers", url, keys, outage, timeout_s=5.0)
        self._keys, self._node_id, self._asks, self._shelf = keys, node_id, asks, shelf
        self._desk, self._watcher = Desk(), watcher

    def _wake(self) -> None:
        self._asks.put(None)

    def _turn(self) -> bool:
        wait_s = self._desk.wait_s(time.monotonic())
        worked = False
        try:
            asked = self._asks.get(timeout=IDLE_S if wait_s is None else max(wait_s, 0.0001))
            while True:
                if asked is not None:
                    worked = self._take(asked) or worked
                asked = self._asks.get_nowait()
        except queue.Empty:
            pass
        for place in self._desk.due(time.monotonic()):
            worked = self._look(place) or worked
        return worked

    def _take(self, asked: Asked) -> bool:
        if self._desk.take(asked, time.monotonic()):
            return False
        reason = f"{READERS_MAX} readers wait at this agent already: try again later"
        self._send(asked, LogsAnswer(code=LimitExceeded.code, reason=reason), b"")
        return True

    def _look(self, place: Place) -> bool:
        asked, now_s = place.asked, time.monotonic()
        answer, data = LogsAnswer(), b""
        try:
            ready = self._shelf.has_news(asked)
            if ready or now_s >= place.until_s:
                self._shelf.check(asked)
                answer, data = self._shelf.answer(asked)
        except Forbidden as error:
            answer = LogsAnswer(code=error.code, reason=str(error))
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
            reason = f"the output of ticket {asked.ask.ticket_id} cannot be read on its node: {why}"
            answer = LogsAnswer(code=LogsUnavailable.code, reason=reason)
        except Exception:  # a defect here must not leave every other reader without an answer
            log.exception("the output of ticket %s cannot be read", asked.ask.ticket_id)
            answer = LogsAnswer(code=LogsUnavailable.code, reason="the agent failed at it: see its log")
        news = bool(data or answer.code or not asked.ask.wanted or any(one.offset < 0 for one in asked.ask.wanted))
        if not self._desk.may_answer(place, now_s, news=news):
            return False
        self._desk.answered(place, len(data))
        self._send(asked, answer, data)
        return True

    def _send(self, asked: Asked, answer: LogsAnswer, data: bytes) -> None:
        key = self._keys.logs_reply(asked.reader, self._node_id)
        pipeline = self._client.pipeline(transaction=False)
        # no reader has two asks at one agent, so nobody misses what this removes
        pipeline.xadd(key, encode_answer(asked.seq, answer, data), maxlen=1, approximate=False)  # type: ignore[arg-type]
        pipeline.pexpire(key, REPLIES_KEPT_MS)
        pipeline.execute()
        if self._watcher is not None:
            if answer.code:
                self._watcher.refused(answer.code)
            else:
                self._watcher.answered(len(data))
