"""Reading actors' output from afar: asks to agents, their answers put in order, and lines made of the pieces.

``LogReader`` exchanges asks and answers, at most one at a time with each agent; ``Feed`` keeps the place in every file
that is read and asks for the next piece when the last one was taken; ``Splitter`` makes lines. Each is for one thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spoke.errors import LogsUnavailable, SpokeError, from_code
from spoke.events.codec import DecodeError
from spoke.protocol.identity import Key, client_prefix
from spoke.protocol.keys import Keys
from spoke.protocol.logs import (
    ASKS_KEPT,
    WAIT_MS_MAX,
    WANTED_MAX,
    LogFile,
    LogsAnswer,
    ReadLogs,
    Wanted,
    decode_answer,
    encode_ask,
    opening,
)
from spoke.protocol.server import BLOCK_MS_MAX, connect

ANSWER_S = 5.0
"""An agent that has not answered for so long (beyond the time for which it was to wait for news) counts as silent."""
AGAIN_S = 1.0
"""How long an agent that did not give any output is left in peace."""
LINE_BYTES_MAX = 1 << 20
"""A longer line is cut."""
_BLOCK_S = BLOCK_MS_MAX / 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """What one agent answered; ``error`` if it did not, or would not."""

    node_id: str
    answer: LogsAnswer
    data: bytes = b""
    error: SpokeError | None = None


@dataclass(slots=True)
class _Outstanding:
    seq: int
    until_s: float


class LogReader:
    """Asks agents of one pool for output. Close it."""

    def __init__(self, url: str, pool: str, key: Key | None = None) -> None:
        self._keys, self._key = Keys(pool), key
        self._redis = connect(url, pool=pool)
        self._name = (client_prefix(key.signer.name) if key is not None else "r-") + secrets.token_hex(16)
        self._outstanding: dict[str, _Outstanding] = {}
        self._after: dict[str, str] = {}
        self._seq = 0

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def interrupt(self) -> None:
        """Have whoever waits for an answer get a RedisError. Callable from any thread."""
        self._redis.connection_pool.disconnect()

    def is_asked(self, node_id: str) -> bool:
        """Whether an answer of this agent is still to come."""
        return node_id in self._outstanding

    def ask(self, asks: Iterable[tuple[str, ReadLogs]]) -> None:
        """Ask some agents, whom nothing else may be asked meanwhile. Raises RedisError."""
        pipeline = self._redis.pipeline(transaction=False)
        for node_id, ask in asks:
            self._seq += 1
            opens = opening(self._key, self._keys.pool, ask.ticket_id, node_id)
            fields: Any = encode_ask(ask, self._name, self._seq, opens=opens, pool=self._keys.pool, node_id=node_id)
            pipeline.xadd(self._keys.logs(node_id), fields, maxlen=ASKS_KEPT, approximate=False)
            until_s = time.monotonic() + ask.wait_ms / 1000 + ANSWER_S
            self._outstanding[node_id] = _Outstanding(self._seq, until_s)
        pipeline.execute()

    def answers(self, wait_s: float) -> list[Answer]:
        """The answers that have come, as soon as there is one; none after ``wait_s`` seconds. Raises RedisError.

        An agent that is silent for too long has an answer with an error.
        """
        until_s = time.monotonic() + wait_s
        while self._outstanding:
            now_s = time.monotonic()
            next_s = min(until_s, *(one.until_s for one in self._outstanding.values()))
            found = self._read(min(max(next_s - now_s, 0.0), _BLOCK_S)) + self._silent()
            if found or time.monotonic() >= until_s:
                return found
        return []

    def forget(self, node_id: str) -> None:
        """Do not wait for this agent any more."""
        self._outstanding.pop(node_id, None)

    def _read(self, wait_s: float) -> list[Answer]:
        streams = {
            self._keys.logs_reply(self._name, node_id): self._after.get(node_id, "0") for node_id in self._outstanding
        }
        nodes = {key.encode(): node_id for key, node_id in zip(streams, self._outstanding, strict=True)}
        found: Any = self._redis.xread(streams, block=max(1, int(wait_s * 1000)))  # type: ignore[arg-type]
        answers = []
        for key, chunks in (found or {}).items():
            node_id = nodes[key]
            for chunk in chunks:
                for entry_id, fields in chunk:
                    self._after[node_id] = entry_id.decode()
                    answers += self._take(node_id, fields)
        return answers

    def _take(self, node_id: str, fields: dict[bytes, bytes]) -> list[Answer]:
        try:
            seq, answer, data = decode_answer(fields)
        except DecodeError as error:
            self.forget(node_id)
            return [Answer(node_id, LogsAnswer(), error=error)]
        one = self._outstanding.get(node_id)
        if one is None or one.seq != seq:
            return []
        self.forget(node_id)
        return [Answer(node_id, answer, data, from_code(answer.code, answer.reason) if answer.code else None)]

    def _silent(self) -> list[Answer]:
        now_s = time.monotonic()
        late = [node_id for node_id, one in self._outstanding.items() if one.until_s <= now_s]
        for node_id in late:
            self.forget(node_id)
            self._after.pop(node_id, None)
        why = f"has not answered for {ANSWER_S:g} s: is it running, and of the same release?"
        return [
            Answer(node_id, LogsAnswer(), error=LogsUnavailable(f"the agent of node {node_id} {why}"))
            for node_id in late
        ]

    def files(self, ticket_id: str, nodes: Iterable[str]) -> tuple[dict[str, tuple[LogFile, ...]], list[Answer]]:
        """What output each of these nodes has of a ticket; and the answers of those that did not say."""
        wanted = list(dict.fromkeys(nodes))
        self.ask((node_id, ReadLogs(ticket_id)) for node_id in wanted)
        found: dict[str, tuple[LogFile, ...]] = {}
        failed: list[Answer] = []
        until_s = time.monotonic() + 2 * ANSWER_S
        while len(found) + len(failed) < len(wanted) and time.monotonic() < until_s:
            for answer in self.answers(ANSWER_S):
                if answer.error is None:
                    found[answer.node_id] = answer.answer.files
                else:
                    failed.append(answer)
        return found, failed


@dataclass(frozen=True, slots=True)
class Begin:
    """Where to begin: so many lines before the end, or what was written since; else at the beginning."""

    tail: int = -1
    age_ms: int = -1
    since_ms: int = -1


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next bytes of an actor's output. ``lost``: so many before them were rotated away unread."""

    node_id: str
    rank: int
    actor: str
    data: bytes
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Loss:
    """So many bytes of a rank's output could not be written on its node, for a reason."""

    node_id: str
    rank: int
    nbytes: int
    why: str

    def begun(self) -> str:
        """In words, while it goes on."""
        return f"output of rank {self.rank} is being lost: node {self.node_id} cannot write it ({self.why})"

    def in_all(self) -> str:
        """In words, once it is over."""
        who = f"node {self.node_id} could not write them ({self.why})"
        return f"{self.nbytes} bytes of rank {self.rank}'s output were lost: {who}"


@dataclass(slots=True)
class _File:
    node_id: str
    rank: int
    actor: str
    begin: Begin
    offset: int = -1
    end: int = 0
    lost: int = 0
    why: str = ""

    def wanted(self) -> Wanted:
        begin = self.begin
        return Wanted(self.rank, self.actor, self.offset, begin.tail, begin.age_ms, begin.since_ms, self.lost)


@dataclass(slots=True)
class Feed:
    """The output of one ticket, from any number of nodes, as it comes. ``errors`` says which nodes do not give any."""

    reader: LogReader
    ticket_id: str
    errors: dict[str, SpokeError] = field(default_factory=dict)
    _files: dict[tuple[str, int, str], _File] = field(default_factory=dict)
    _by_node: dict[str, list[_File]] = field(default_factory=dict)
    _fresh: set[str] = field(default_factory=set)
    _again_s: dict[str, float] = field(default_factory=dict)

    def add(self, node_id: str, rank: int, actor: str, begin: Begin, offset: int = -1) -> None:
        """Read this file, too, if it is not read already; ``offset`` goes before ``begin``."""
        name = (node_id, rank, actor)
        if name not in self._files:
            self._files[name] = one = _File(node_id, rank, actor, begin, offset)
            self._by_node.setdefault(node_id, []).append(one)

    @property
    def files(self) -> int:
        """How many files are read."""
        return len(self._files)

    def hurry(self) -> None:
        """Wait for no news any more: ask everybody anew."""
        self._fresh.clear()
        self._again_s.clear()
        for node_id in self._by_node:
            self.reader.forget(node_id)

    def behind(self) -> bool:
        """Whether there is something that was not read yet, by the answers since ``hurry``; silent nodes have none."""
        return any(
            one.node_id not in self._fresh or (one.offset < one.end and one.node_id not in self.errors)
            for one in self._files.values()
        )

    def read(self, news_s: float, wait_s: float) -> list[Chunk]:
        """The next pieces. Agents are to wait for news for ``news_s``; here it is waited for ``wait_s`` at most.

        With ``news_s`` 0 it is waited for an answer in any case. Raises RedisError.
        """
        wait_ms, now_s = min(int(news_s * 1000), WAIT_MS_MAX), time.monotonic()
        idle = [node_id for node_id in self._by_node if not self.reader.is_asked(node_id)]
        due = [node_id for node_id in idle if self._again_s.get(node_id, 0.0) <= now_s]
        self.reader.ask((node_id, self._next(node_id, wait_ms)) for node_id in due)
        if len(idle) == len(self._by_node) and not due:
            time.sleep(min(wait_s, AGAIN_S))
        chunks: list[Chunk] = []
        for answer in self.reader.answers(wait_s if news_s else 2 * ANSWER_S):
            chunks += self._take(answer)
        return chunks

    def losses(self) -> Iterator[Loss]:
        """What could not be written on the nodes, as far as the output does not say so itself."""
        for one in self._files.values():
            if one.lost:
                yield Loss(one.node_id, one.rank, one.lost, one.why)

    def has_reached(self, ends: Mapping[tuple[str, int, str], int]) -> bool:
        """Whether every file was read up to its end in ``ends``, those of silent nodes apart."""
        return all(
            one.offset >= ends.get((one.node_id, one.rank, one.actor), 0)
            for one in self._files.values()
            if one.node_id not in self.errors
        )

    def _next(self, node_id: str, wait_ms: int) -> ReadLogs:
        """The next ask: of files that are behind first, since one answer has only so many bytes."""
        files = sorted(self._by_node[node_id], key=lambda one: 0 <= one.offset == one.end)
        return ReadLogs(self.ticket_id, tuple(one.wanted() for one in files[:WANTED_MAX]), wait_ms)

    def _take(self, answer: Answer) -> Iterator[Chunk]:
        self._fresh.add(answer.node_id)
        if answer.error is not None:
            self.errors[answer.node_id] = answer.error
            self._again_s[answer.node_id] = time.monotonic() + AGAIN_S
            return
        self.errors.pop(answer.node_id, None)
        position = 0
        for piece in answer.answer.pieces:
            data = answer.data[position : position + piece.size]
            position += piece.size
            one = self._files.get((answer.node_id, piece.rank, piece.actor))
            if one is None:
                continue
            lost = max(0, piece.offset - one.offset) if one.offset >= 0 else 0
            one.offset, one.end = piece.offset + piece.size, piece.end
            one.lost, one.why = piece.lost, piece.why
            if data or lost:
                yield Chunk(one.node_id, one.rank, one.actor, data, lost)


class Splitter:
    """Makes lines of one file's chunks."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def lines(self, data: bytes) -> Iterator[bytes]:
        """The lines that are whole now, without their ends; one of more than 1 MiB is cut."""
        self._rest += data
        *whole, rest = self._rest.split(b"\n")
        yield from map(bytes, whole)
        self._rest = rest
        if len(rest) > LINE_BYTES_MAX:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """What stands after the last line's end."""
        if self._rest:
            found, self._rest = bytes(self._rest), bytearray()
            yield found
