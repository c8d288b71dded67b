"""A server in memory: the few commands that Spoke uses, its scripts in Python, and a file that can lose its tail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
from redis.exceptions import ResponseError

from spoke.protocol.keys import Keys
from tests.sim.world import Connection, Operation, World

EPOCH_MS = 1_700_000_000_000
CHECKPOINT_S = 0.5
CHECKPOINTS = 6

Id = tuple[int, int]


def parse(text: str | bytes, open_seq: int = 0) -> Id:
    """A stream id as numbers."""
    found = text.decode() if isinstance(text, bytes) else text
    ms, _, seq = found.partition("-")
    return int(ms), int(seq) if seq else open_seq


def name(entry: Id) -> bytes:
    """A stream id as bytes."""
    return b"%d-%d" % entry


def raw(value: Any) -> bytes:
    """A value as the server stores it."""
    return value if isinstance(value, bytes) else str(value).encode()


class Stream:
    """Entries in order; fields flat, as they came."""

    def __init__(self) -> None:
        self.entries: list[tuple[Id, tuple[bytes, ...]]] = []
        self.last: Id = (0, 0)

    def copy(self) -> Stream:
        new = Stream()
        new.entries, new.last = list(self.entries), self.last
        return new

    def after(self, entry: Id) -> list[tuple[Id, tuple[bytes, ...]]]:
        low, high = 0, len(self.entries)
        while low < high:
            middle = (low + high) // 2
            if self.entries[middle][0] <= entry:
                low = middle + 1
            else:
                high = middle
        return self.entries[low:]


class Server:
    """The primary. ``lose_tail`` is what a power loss or a fail-over to a lagging replica does."""

    def __init__(self, world: World, keys: Keys) -> None:
        self.world, self.keys = world, keys
        self.down = False
        self.generation = 1
        self.skew_ms = 0
        self.refuses = ""
        """What it answers for now to all that writes (BUSY), or to those who append (OOM); empty: nothing."""
        self.data: dict[str, Any] = {}
        self.connections: list[Connection] = []
        self.on_commit: Callable[[list[list[Any]]], None] = lambda commands: None
        self._journal: deque[tuple[float, list[tuple[Any, ...]]]] = deque()
        self._checkpoints: deque[tuple[float, int, dict[str, Any]]] = deque([(0.0, 0, {})])
        self._written = 0
        self._waiters: dict[str, list[Callable[[], bool]]] = {}

    # --- life ---

    @property
    def run_id(self) -> str:
        return f"run-{self.generation}"

    def now_ms(self) -> int:
        return EPOCH_MS + self.skew_ms + int(self.world.now_s * 1000)

    def stop(self) -> None:
        """The server dies: every connection breaks."""
        self.down = True
        self.generation += 1
        self._waiters.clear()
        for connection in self.connections:
            connection.reset()

    def start(self, lost_s: float = 0.0) -> int:
        """The server is back, without what was written in the last ``lost_s`` of its life; how many writes are gone."""
        self.down = False
        end = self._written
        if lost_s:
            after_s = self._journal[-1][0] - lost_s if self._journal else 0.0
            first = self._written - len(self._journal)
            keep = first + sum(1 for at_s, _ in self._journal if at_s <= after_s)
            while self._checkpoints[-1][1] > keep and len(self._checkpoints) > 1:
                self._checkpoints.pop()
            _, begun, data = self._checkpoints[-1]
            keep = max(keep, begun)
            self.data = copied(data)
            for _, writes in list(self._journal)[begun - first : keep - first]:
                for write in writes:
                    self._apply(write)
            while self._written > keep:
                self._journal.pop()
                self._written -= 1
        return end - self._written

    def _write(self, *writes: tuple[Any, ...]) -> None:
        """One atomic group: it stands in the file as a whole or not at all."""
        now_s = self.world.now_s
        if now_s - self._checkpoints[-1][0] >= CHECKPOINT_S:
            self._checkpoints.append((now_s, self._written, copied(self.data)))
            if len(self._checkpoints) > CHECKPOINTS:
                self._checkpoints.popleft()
                while self._written - len(self._journal) < self._checkpoints[0][1]:
                    self._journal.popleft()
        for write in writes:
            self._apply(write)
        self._journal.append((now_s, list(writes)))
        self._written += 1
        for write in writes:
            if write[0] == "XADD":
                self._tell(write[1])

    def _tell(self, key: str) -> None:
        waiting = self._waiters.pop(key, [])
        left = [waiter for waiter in waiting if not waiter()]
        if left:
            self._waiters[key] = left

    def _stream(self, key: str) -> Stream:
        return self.data.setdefault(key, Stream())

    def _apply(self, write: tuple[Any, ...]) -> None:
        command, key, *args = write
        if command == "XADD":
            stream = self._stream(key)
            assert args[0] > stream.last, (key, args[0], stream.last)
            stream.entries.append((args[0], args[1]))
            stream.last = args[0]
        elif command == "XTRIM":
            stream = self._stream(key)
            stream.entries = (
                stream.after((args[0][0], args[0][1] - 1)) if args[0][1] else stream.after((args[0][0] - 1, 1 << 62))
            )
        elif command == "XDEL":
            stream = self._stream(key)
            stream.entries = [entry for entry in stream.entries if entry[0] not in args[0]]
        elif command in ("HSET", "ZADD"):
            self.data.setdefault(key, {}).update(args[0])
        elif command in ("HDEL", "ZREM"):
            self.data.get(key, {}).pop(args[0], None)
        elif command == "DEL":
            self.data.pop(key, None)
        else:
            raise NotImplementedError(command)

    # --- what clients ask: each an operation that answers ---

    def xadd(self, key: str, *entries: dict[str, Any]) -> Operation:
        """A pipeline of XADDs."""

        def act(answer: Callable[[Any], None]) -> None:
            if self.refuses:
                answer(ResponseError(self.refuses))
                return
            for fields in entries:
                flat = tuple(raw(item) for pair in fields.items() for item in pair)
                self._write(("XADD", key, self._next(key), flat))
            answer(len(entries))

        return act

    def _busy(self, answer: Callable[[Any], None]) -> bool:
        """Scripts run also when memory is full."""
        if self.refuses.startswith("BUSY"):
            answer(ResponseError(self.refuses))
            return True
        return False

    def _next(self, key: str) -> Id:
        last, now = self._stream(key).last, self.now_ms()
        return (now, 0) if now > last[0] else (last[0], last[1] + 1)

    def xread(self, key: str, after: str | bytes, block_ms: int | None, count: int) -> Operation:
        """XREAD of one stream: ids and flat fields."""
        start = parse(after)

        def act(answer: Callable[[Any], None]) -> None:
            done = False

            def look() -> bool:
                nonlocal done
                if done:
                    return True
                found = self._stream(key).after(start)[:count] if key in self.data else []
                if found:
                    done = True
                    answer([(name(entry), fields) for entry, fields in found])
                return done

            def over() -> None:
                nonlocal done
                if not done:
                    done = True
                    answer([])

            if look():
                return
            if block_ms is None:
                over()
                return
            self._waiters.setdefault(key, []).append(look)
            self.world.after(block_ms / 1000, over)

        return act

    def read(self, act: Callable[[], Any]) -> Operation:
        """Any command that writes nothing."""

        def run(answer: Callable[[Any], None]) -> None:
            try:
                answer(act())
            except ResponseError as error:
                answer(error)

        return run

    def xdel(self, key: str, ids: list[bytes]) -> Operation:
        """XDEL."""

        def act(answer: Callable[[Any], None]) -> None:
            self._write(("XDEL", key, {parse(one) for one in ids}))
            answer(len(ids))

        return act

    def renew(self, holder: str, lease_ms: int) -> Operation:
        """renew.lua."""

        def act(answer: Callable[[Any], None]) -> None:
            if self._busy(answer):
                return
            deadline = self.data.get(self.keys.leases, {}).get(holder)
            if deadline is None or deadline < self.now_ms():
                answer(0)
                return
            self._write(("ZADD", self.keys.leases, {holder: self.now_ms() + lease_ms}))
            answer(1)

        return act

    def elect(self, holder: str, leader_ms: int) -> Operation:
        """elect.lua."""

        def act(answer: Callable[[Any], None]) -> None:
            if self._busy(answer):
                return
            leader, now = self.data.get(self.keys.leader, {}), self.now_ms()
            left = int(leader.get("deadline", 0)) - now
            if leader.get("holder", holder) != holder and left >= 0:
                answer([0, str(left).encode(), leader["holder"].encode()])
                return
            epoch = int(leader.get("epoch", 0)) + 1
            self._write(("HSET", self.keys.leader, {"holder": holder, "epoch": epoch, "deadline": now + leader_ms}))
            answer([epoch, str(leader.get("cursor", "0-0")).encode(), str(now).encode()])

        return act

    def resign(self, holder: str, epoch: int) -> Operation:
        """resign.lua."""

        def act(answer: Callable[[Any], None]) -> None:
            if self._busy(answer):
                return
            leader = self.data.get(self.keys.leader, {})
            if (leader.get("holder"), leader.get("epoch")) == (holder, epoch):
                self._write(("HSET", self.keys.leader, {"deadline": 0}))
            answer(1)

        return act

    def fencing_error(self, holder: str, epoch: int) -> str:
        """Why this allocator may not commit."""
        leader = self.data.get(self.keys.leader, {})
        if (leader.get("holder"), leader.get("epoch")) != (holder, epoch):
            return f"FENCED held by {leader.get('holder')} in epoch {leader.get('epoch')}"
        return ""

    def end_of_log(self, expected: str) -> str:
        """The id of the last event; ``expected`` is what the allocator believes."""
        log = self._stream(self.keys.events)
        return name(log.entries[-1][0]).decode() if log.entries else "0-0"

    def commit(self, names: list[str], args: list[Any]) -> Operation:
        """commit.lua."""

        def act(answer: Callable[[Any], None]) -> None:
            if self._busy(answer):
                return
            holder, epoch, leader_ms, cursor, last_id, packed, look = args
            fenced = self.fencing_error(holder, epoch)
            end = self.end_of_log(last_id)
            if fenced or end != last_id:
                answer(ResponseError(fenced or f"DIVERGED the log ends at {end}, not at {last_id}"))
                return
            now = self.now_ms()
            commands = [[text(one[0]), names[one[1] - 1], *one[2:]] for one in msgpack.unpackb(packed, raw=True)]
            head = ("HSET", self.keys.leader, {"deadline": now + leader_ms, "cursor": cursor})
            self.on_commit(commands)
            # one by one for the ids, but one group in the file
            first = self._written
            self._write(head)
            for command in commands:
                self._command(command, now)
            writes = [write for _, group in list(self._journal)[first - self._written :] for write in group]
            at_s = self._journal[-1][0]
            for _ in range(self._written - first):
                self._journal.pop()
            self._journal.append((at_s, writes))
            self._written = first + 1
            leases = self.data.get(self.keys.leases, {})
            expired = sorted((at, holder) for holder, at in leases.items() if at < now)[:100]
            answer([now, *(holder.encode() for _, holder in expired if look)])

        return act

    def _command(self, command: list[Any], now: int) -> None:
        verb, key, *args = command
        if verb == "XADD":
            if args[0] == b"MAXLEN":
                args = args[3:]
            elif args[0] == b"MINID":
                args = args[3 if args[1] == b"~" else 2 :]
            entry = self._next(key) if args[0] == b"*" else parse(args[0])
            self._write(("XADD", key, entry, tuple(raw(one) for one in args[1:])))
        elif verb == "XTRIM":
            self._write(("XTRIM", key, parse(args[1])))
        elif verb == "LEASE":
            self._write(("ZADD", key, {text(args[0]): now + args[1]}))
        elif verb == "HSET":
            self._write(("HSET", key, {text(k): v for k, v in zip(args[::2], args[1::2], strict=True)}))
        elif verb in ("HDEL", "ZREM"):
            for name in args:
                self._write((verb, key, text(name)))
        elif verb == "DEL":
            self._write(("DEL", key))
        elif verb not in ("EXPIRE", "PERSIST"):
            raise NotImplementedError(verb)


def text(value: Any) -> str:
    """A name in a packed command."""
    return value.decode() if isinstance(value, bytes) else str(value)


def copied(data: dict[str, Any]) -> dict[str, Any]:
    """An independent copy of all keys."""
    return {key: value.copy() for key, value in data.items()}


class Direct:
    """The commands that the log's reader uses, at once and without a network: for checks, and behind SlowClient."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _do(self, act: Callable[[], Any]) -> Any:
        return act()

    def xrange(self, key: str, min: str = "-", max: str = "+", count: int | None = None) -> Any:
        def act() -> Any:
            stream = self._server._stream(key)
            found = stream.after(parse(min[1:])) if min != "-" else stream.entries
            if max != "+":
                found = [one for one in found if one[0] <= parse(max)]
            return [(name(one), dict(zip(f[::2], f[1::2], strict=True))) for one, f in found[:count]]

        return self._do(act)

    def xrevrange(self, key: str, count: int = 1) -> Any:
        def act() -> Any:
            found = self._server._stream(key).entries[-count:]
            return [(name(one), dict(zip(f[::2], f[1::2], strict=True))) for one, f in reversed(found)]

        return self._do(act)

    def hget(self, key: str, field: str) -> Any:
        return self._do(lambda: self._server.data.get(key, {}).get(field))

    def hmget(self, key: str, fields: list[str]) -> Any:
        def act() -> Any:
            found = [self._server.data.get(key, {}).get(field) for field in fields]
            return [None if one is None else raw(one) for one in found]

        return self._do(act)

    def hkeys(self, key: str) -> Any:
        return self._do(lambda: [raw(one) for one in self._server.data.get(key, {})])

    def xlen(self, key: str) -> Any:
        return self._do(lambda: len(self._server._stream(key).entries))


class SlowClient(Direct):
    """The same over a connection that may fail."""

    def __init__(self, server: Server, connection: Connection) -> None:
        super().__init__(server)
        self._connection = connection

    def _do(self, act: Callable[[], Any]) -> Any:
        return self._connection.call(self._server.read(act))
