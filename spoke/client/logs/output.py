"""The output of a ticket: found wherever its actors ran, and read line by line, also while it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from spoke.client.logs.reading import Begin, Chunk, Feed, LogReader, Splitter
from spoke.errors import LogsUnavailable, RankOutOfRange, UnknownTicket
from spoke.events.lifecycle import ACTOR_ALIVE
from spoke.protocol.keys import Keys
from spoke.protocol.logs import LOG_DIR_LABEL
from spoke.protocol.server import Redis

LOOK_EVERY_S = 1.0
"""How often a follower looks whether actors have come or ended."""
NEWS_S = 5.0
"""For how long an agent holds a follower's ask back while there is nothing new."""


@dataclass(frozen=True, slots=True)
class Member:
    """The latest actor of a rank, and where it ran."""

    rank: int
    actor: str
    node_id: str
    runs: bool
    host: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a ticket's actors ran. ``size`` is the number of its ranks; ``over``: nothing of it will be started."""

    members: tuple[Member, ...]
    nodes: tuple[str, ...]
    size: int
    over: bool

    @property
    def running(self) -> bool:
        """Whether more output may come."""
        return not self.over and (not self.members or any(member.runs for member in self.members))


@dataclass(frozen=True, slots=True)
class NodeNow:
    """What is known of a node. ``log_dir`` is where it keeps its actors' output."""

    state: str
    host: str
    log_dir: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an actor's output, without its end."""

    rank: int
    actor: str
    data: bytes


def read_places(redis: Redis, keys: Keys, ticket_id: str) -> Places | None:
    """Where a ticket's actors ran, by the views; None for a ticket that they do not show."""
    raw: Any = redis.hgetall(keys.ticket(ticket_id))
    if not raw:
        return None
    over = raw.get(b"state") == b"ended"
    ranks = {int(name[5:]): msgspec.json.decode(value) for name, value in raw.items() if name.startswith(b"rank.")}
    members = tuple(
        Member(rank, row["actor"], row["node"], not over and row.get("state") in ACTOR_ALIVE, row.get("host", ""))
        for rank, row in sorted(ranks.items())
        if row.get("actor")
    )
    nodes = dict.fromkeys(row["node"] for _, row in sorted(ranks.items()))
    return Places(members, tuple(nodes), len(ranks), over or (raw.get(b"state") == b"releasing" and not members))


def read_nodes(redis: Redis, keys: Keys, node_ids: tuple[str, ...]) -> dict[str, NodeNow]:
    """What the views show of some nodes, or (of none) of all; those that have left are not there."""
    if node_ids:
        values: Any = redis.hmget(keys.nodes, list(node_ids))
        found = zip(node_ids, values, strict=True)
    else:
        rows: Any = redis.hgetall(keys.nodes)
        found = ((name.decode(), line) for name, line in rows.items())  # type: ignore[assignment]
    nodes = {}
    for node_id, line in found:
        if line is not None:
            plain = msgspec.json.decode(line)
            labels = plain.get("labels") or {}
            nodes[node_id] = NodeNow(plain.get("state", ""), plain.get("host", ""), labels.get(LOG_DIR_LABEL, ""))
    return nodes


class TicketOutput:
    """What the actors of one ticket print. ``places`` says where they ran (by default what the views say).

    ``warn`` is called with what the reader should know: output that is missing, and why. Opening it asks the agents
    what there is; it raises UnknownTicket, RankOutOfRange, Forbidden, LogsUnavailable (nobody gives any output), and
    RedisError.
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        reader: LogReader,
        ticket_id: str,
        *,
        rank: int | None = None,
        begin: Begin | None = None,
        places: Callable[[], Places | None] | None = None,
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._redis, self._keys, self._ticket_id, self._rank = redis, keys, ticket_id, rank
        self._places = places or (lambda: read_places(redis, keys, ticket_id))
        self._warn = warn
        self._reader = reader
        self._feed = Feed(reader, ticket_id)
        self._splitters: dict[tuple[str, int, str], Splitter] = {}
        self._told: set[str] = set()
        self._begin = begin or Begin()
        self._ends: dict[tuple[str, int, str], int] = {}
        self.failed = False
        """Whether some output could not be read."""
        self.problem = ""
        """What was last told of."""
        self._now = self._find()

    @property
    def ranks(self) -> list[int]:
        """The ranks that have output, or will have."""
        return sorted({rank for _, rank, _ in self._ends})

    # --- finding -------------------------------------------------------------------------------------------------

    def _find(self) -> Places:
        """Ask what there is."""
        places = self._places()
        nodes = read_nodes(self._redis, self._keys, places.nodes if places is not None else ())
        if places is None:
            places = Places((), tuple(node_id for node_id, node in nodes.items() if node.state != "lost"), 0, True)
            self._search(places)
            return places
        if self._rank is not None and not 0 <= self._rank < places.size:
            has = f"has ranks 0 to {places.size - 1}" if places.size else "has no ranks yet"
            raise RankOutOfRange(f"rank {self._rank} of ticket {self._ticket_id} was asked for, which {has}")
        self._check_nodes(places, nodes)
        asked = tuple(node_id for node_id in places.nodes if node_id in nodes and nodes[node_id].state != "lost")
        homes = {(member.rank, member.actor): member.node_id for member in places.members}
        answered = self._list(asked, homes)
        for member in places.members:
            if member.node_id in answered:
                self._add(member.node_id, member.rank, member.actor, self._begin)
        return places

    def _search(self, places: Places) -> None:
        """The views have forgotten the ticket: look whether a node has not."""
        self._list(places.nodes, {})
        if not self._ends:
            which = "this rank" if self._rank is not None else "it"
            raise UnknownTicket(
                f"pool {self._keys.pool} shows no ticket {self._ticket_id}: it was never granted, or it ended more "
                f"than an hour ago; and none of the {len(places.nodes)} nodes that are up has output of {which}. "
                f"`spoke tickets` lists the live ones, `spoke log` has all that happened"
            )

    def _list(self, nodes: tuple[str, ...], homes: Mapping[tuple[int, str], str]) -> set[str]:
        """Ask nodes which files they have; those that answered. Of a file that several can read, its home is asked."""
        found, silent = self._reader.files(self._ticket_id, nodes)
        for answer in silent:
            assert answer.error is not None
            self._tell(str(answer.error))
            if answer.error.code != LogsUnavailable.code:
                raise answer.error
        seen: set[tuple[int, str, int]] = set()
        every = [(node_id, file) for node_id, files in found.items() for file in files]
        for node_id, file in sorted(
            every, key=lambda one: (one[1].rank, homes.get((one[1].rank, one[1].actor)) != one[0], one[1].changed_ms)
        ):
            if (file.rank, file.actor, file.inode) not in seen:
                seen.add((file.rank, file.actor, file.inode))
                self._add(node_id, file.rank, file.actor, self._begin, file.end)
        return set(found)

    def _add(self, node_id: str, rank: int, actor: str, begin: Begin, end: int = 0) -> None:
        if self._rank is None or rank == self._rank:
            self._ends.setdefault((node_id, rank, actor), end)
            self._feed.add(node_id, rank, actor, begin)

    def _check_nodes(self, places: Places, nodes: dict[str, NodeNow]) -> None:
        """Tell of the members whose output cannot be had, and where it is."""
        for member in places.members:
            if self._rank is not None and member.rank != self._rank:
                continue
            node = nodes.get(member.node_id)
            if node is None or node.state == "lost":
                how = "has left the pool" if node is None else "is lost"
                host = node.host if node is not None else member.host
                log_dir = node.log_dir if node is not None else ""
                path = f"{log_dir}/{self._ticket_id}/{member.rank}-{member.actor}.log" if log_dir else ""
                where = f"{host}:{path}" if path else f"in its agent's log directory on {host}"
                self._tell(f"rank {member.rank} ran on node {member.node_id}, which {how}: its output is {where}")

    def _tell(self, text: str, *, failed: bool = True) -> None:
        self.failed, self.problem = self.failed or failed, text
        if text not in self._told:
            self._told.add(text)
            self._warn(text)

    # --- reading -------------------------------------------------------------------------------------------------

    def lines(self, *, follow: bool = False) -> Iterator[Line]:
        """The lines that there are; with ``follow`` also those that come, until the actors have ended.

        Raises RedisError.
        """
        for batch in self.batches(follow=follow):
            yield from batch

    def batches(self, *, follow: bool = False) -> Iterator[list[Line]]:
        """The same, as they come: lists of lines, an empty one when nothing has come for a while."""
        look_at_s = time.monotonic() + LOOK_EVERY_S
        while follow and self._now.running:
            if time.monotonic() >= look_at_s:
                self._look()
                look_at_s = time.monotonic() + LOOK_EVERY_S
            if self._feed.files:
                yield self._lines_of(self._read(NEWS_S, look_at_s))
                for loss in self._feed.losses():
                    self._tell(loss.begun(), failed=False)
            else:
                time.sleep(LOOK_EVERY_S / 4)
                yield []
        self._feed.hurry()
        while self._feed.files:
            chunks = self._read(0.0, time.monotonic())
            yield self._lines_of(chunks)
            if self._is_done(follow=follow):
                break
        rest = [Line(*name[1:], line) for name, splitter in self._splitters.items() for line in splitter.rest()]
        if rest:
            yield rest
        for loss in self._feed.losses():
            self._tell(loss.in_all(), failed=False)

    def _is_done(self, *, follow: bool) -> bool:
        return not self._feed.behind() if follow else self._feed.has_reached(self._ends)

    def _look(self) -> None:
        places = self._places()
        if places is None:
            self._now = Places((), (), 0, True)
            return
        if places.members != self._now.members:
            nodes = read_nodes(self._redis, self._keys, places.nodes)
            self._check_nodes(places, nodes)
            for member in places.members:
                if member.node_id in nodes and nodes[member.node_id].state != "lost":
                    self._add(member.node_id, member.rank, member.actor, Begin())
        self._now = places

    def _read(self, news_s: float, until_s: float) -> list[Chunk]:
        chunks = self._feed.read(news_s, max(0.0, until_s - time.monotonic()))
        for error in self._feed.errors.values():
            if error.code != LogsUnavailable.code:
                raise error
            self._tell(str(error))
        return chunks

    def _lines_of(self, chunks: list[Chunk]) -> list[Line]:
        lines = []
        for chunk in chunks:
            splitter = self._splitters.setdefault((chunk.node_id, chunk.rank, chunk.actor), Splitter())
            if chunk.lost:
                self._tell(
                    f"{chunk.lost} bytes of rank {chunk.rank}'s output were rotated away before they could be read",
                    failed=False,
                )
                lines += [Line(chunk.rank, chunk.actor, line) for line in splitter.rest()]
            lines += [Line(chunk.rank, chunk.actor, line) for line in splitter.lines(chunk.data)]
        return lines
