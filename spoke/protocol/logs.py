"""Reading actors' output from afar: what a reader asks an agent, and what the agent answers.

A reader appends an ask to the stream ``logs:<node>``; the agent answers with one piece of bounded size for each file
that it was asked about, on the reader's own stream ``logs-reply:<reader>``, and forgets the reader. The next piece
is sent when it is asked for: nothing flows while nobody reads, and no reader is sent more than it takes.

Offsets count the bytes of a log since it was begun, also those that rotation has removed, so that they stay valid.
In a pool with signed requests an ask is signed with the ticket's log key, which follows from the key of the user who
launched: that user's clients derive it, the agent got it with the launch, and nobody else has it. An administrator
signs with what that node's own key holds for it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from spoke.events.codec import DecodeError, to_json
from spoke.events.names import check_name
from spoke.protocol.identity import Key

LOG_DIR_LABEL = "log_dir"
"""The label of a node that says where its actors' output is."""
VERSION = 1
PIECE_BYTES_MAX = 256 * 1024
"""What one answer carries at most, over all files."""
WAIT_MS_MAX = 10_000
"""For how long an agent holds an ask for news back, at most."""
WANTED_MAX = 1_024
"""The files that one ask may name."""
FILES_MAX = 4_096
"""The files that one answer lists; a ticket with more on one node has them listed by no one."""
TAIL_LINES_MAX = 10_000
ASKS_KEPT = 256
"""No more asks than this stand in an agent's stream: more are of readers that have left, or of a flood."""
REPLIES_KEPT_MS = 60_000
BODY_BYTES_MAX = 1 << 20
MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file, by rank and actor, and from where on: ``offset``, or (where that is negative) what else is given.

    ``tail`` is a number of lines at the end, ``age_ms`` means what was written within that time, ``since_ms`` since a
    moment, milliseconds since 1970; with none of them it is the beginning. ``lost`` is what the reader was last told
    of it.
    """

    rank: int
    actor: str
    offset: int = -1
    tail: int = -1
    age_ms: int = -1
    since_ms: int = -1
    lost: int = 0


@dataclass(frozen=True, slots=True)
class ReadLogs:
    """An ask: the next pieces of ``wanted``, or (if there are none) which files there are of the ticket.

    ``wait_ms``: if there is nothing new, for how long the agent should wait for something.
    """

    ticket_id: str
    wanted: tuple[Wanted, ...] = ()
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a file: ``size`` bytes from ``offset`` on. The file has ``start`` to ``end``, at this moment.

    ``offset`` is not the one that was asked for where that has been rotated away. ``lost``: so many bytes that belong
    behind ``end`` could not be written, for a reason; the file does not say so yet.
    """

    rank: int
    actor: str
    offset: int
    size: int
    start: int
    end: int
    lost: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class LogFile:
    """What there is of one actor's output: the bytes from ``start`` to ``end``, last written at ``changed_ms``.

    ``inode`` tells that two agents which share a directory speak of the same file.
    """

    rank: int
    actor: str
    start: int
    end: int
    changed_ms: int
    inode: int


@dataclass(frozen=True, slots=True)
class LogsAnswer:
    """An answer. ``code`` and ``reason`` say why there is none."""

    pieces: tuple[Piece, ...] = ()
    files: tuple[LogFile, ...] = ()
    code: str = ""
    reason: str = ""


class Asked(NamedTuple):
    """An ask as the agent receives it: who wants the answer, under which number, and what it was signed with."""

    reader: str
    seq: int
    ask: ReadLogs
    body: bytes
    mac: bytes


_ASK = msgspec.json.Decoder(ReadLogs)
_ANSWER = msgspec.json.Decoder(LogsAnswer)


def log_key(key: Key | None, pool: str, ticket_id: str) -> bytes:
    """The key that opens the output of a user's ticket; empty for who has no key."""
    if key is None:
        return b""
    return hmac.digest(key.secret, f"spoke logs 1 {pool} {ticket_id}".encode(), "sha256")


def opening(key: Key | None, pool: str, ticket_id: str, node_id: str) -> bytes:
    """What its holder signs an ask with: an administrator with the node's reading key, a user with the ticket's."""
    if key is not None and key.signer.kind == "admin":
        return key.reading_of(node_id)
    return log_key(key, pool, ticket_id)


def sign(opens: bytes, pool: str, node_id: str, reader: str, seq: int, body: bytes) -> bytes:
    """The signature of an ask to one node."""
    digest = blake2b(key=opens, digest_size=MAC_BYTES)
    for part in (pool.encode(), node_id.encode(), reader.encode(), b"%d" % seq, body):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def encode_ask(
    ask: ReadLogs, reader: str, seq: int, *, opens: bytes, pool: str, node_id: str
) -> dict[str, str | bytes | int]:
    """The stream fields of an ask, signed if there is something to sign with."""
    body = to_json(ask)
    raw: dict[str, str | bytes | int] = {"v": VERSION, "reader": reader, "seq": seq, "body": body}
    if opens:
        raw["mac"] = sign(opens, pool, node_id, reader, seq, body)
    return raw


def decode_ask(raw: Mapping[bytes, bytes]) -> Asked:
    """The ask that the fields hold; raises DecodeError if they hold none that makes sense."""
    try:
        body, reader, seq = raw[b"body"], raw[b"reader"].decode(), int(raw[b"seq"])
        if raw.get(b"v") != b"%d" % VERSION:
            raise ValueError(f"it has version {raw.get(b'v', b'none').decode()!r:.20}, this agent speaks {VERSION}")
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(f"it has {len(body)} bytes")
        ask = _ASK.decode(body)
        check_name("the reader", reader)
        check_name("the ticket id", ask.ticket_id)
        for one in ask.wanted:
            check_name("the actor id", one.actor)
            if not (0 <= one.rank < 2**31 and one.offset < 2**62 and one.tail <= TAIL_LINES_MAX):
                raise ValueError(f"{one} is out of range")
        if len(ask.wanted) > WANTED_MAX:
            raise ValueError(f"it wants {len(ask.wanted)} files, at most {WANTED_MAX} can be had at once")
        return Asked(reader, seq, ask, body, raw.get(b"mac", b""))
    except (KeyError, ValueError, RecursionError) as error:  # InvalidRequest is a ValueError
        raise DecodeError(f"an ask for logs cannot be read: {error}") from error


def encode_answer(seq: int, answer: LogsAnswer, data: bytes) -> dict[str, str | bytes | int]:
    """The stream fields of an answer; ``data`` is that of all its pieces, one after the other."""
    raw: dict[str, str | bytes | int] = {"seq": seq, "body": to_json(answer)}
    if data:
        raw["data"] = data
    return raw


def decode_answer(raw: Mapping[bytes, bytes]) -> tuple[int, LogsAnswer, bytes]:
    """Number, answer and data; raises DecodeError."""
    try:
        answer, data = _ANSWER.decode(raw[b"body"]), raw.get(b"data", b"")
        if any(piece.size < 0 for piece in answer.pieces) or sum(piece.size for piece in answer.pieces) != len(data):
            raise ValueError("its pieces do not add up")
        return int(raw[b"seq"]), answer, data
    except (KeyError, ValueError, RecursionError) as error:
        raise DecodeError(f"an answer about logs cannot be read: {error}") from error
