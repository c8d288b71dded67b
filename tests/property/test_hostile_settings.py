"""What agents and commands read beside the protocol, fed with hostile bytes: topology, health, views, the log."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spoke.agent.health import Plugged, file_reader
from spoke.agent.inventory import find_gpus
from spoke.agent.topology import from_file
from spoke.agent.torchrun import ERROR_FILE, read_error
from spoke.allocator.views import node_line, ticket_line
from spoke.client.status import NodeStatus, TicketStatus, row_of
from spoke.errors import InvalidRequest, MalformedData
from spoke.events import snapshot
from spoke.events.chain import FIELD, Chain
from spoke.events.codec import event_args
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.events.strays import SAID_MAX
from spoke.events.takeup import STRIKE, BlockedLog, read_strike, take_up
from tests.builders import MemoryPool, gang, node_spec
from tests.hostile import broken, spoiled
from tests.property.test_hostile_bytes import EXAMPLES, Fields, little_memory

fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
GPUS = find_gpus(4, "n0")
TOPOLOGY = b"""\
numa: [0, 0, 1, 1]
links: |
  X NV4 SYS SYS
  NV4 X SYS SYS
  SYS SYS X NV4
  SYS SYS NV4 X
nics: [{name: mlx5_0:1, rate_gbps: 400, numa: 0}, mlx5_1:1]
nic_links: [[PIX, SYS], [PIX, SYS], [SYS, PIX], [SYS, PIX]]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "file"


@fuzzed
@given(raw=st.one_of(spoiled(TOPOLOGY), st.binary(max_size=200)))
@example(raw=b"\xff\xfe")
@example(raw=b"[" * 1_500)
@example(raw=b"numa: [.inf, 0, 0, 0]")
@example(raw=b"nics: [{name: a, rate_gbps: 1, numa: .nan}]")
@example(raw=b"numa: 2026-01-01")
@example(raw=b"links: [[X, NV4, NV4, NV4], [NV4, X, NV4, NV4], [NV4], [NV4]]")
def test_a_hostile_topology_file_is_read_or_named(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    with contextlib.suppress(InvalidRequest):
        from_file(file, GPUS, ())


NUMA = {"numa": [0, 0, 1, 1], "nics": [{"name": "a", "rate_gbps": 1.5, "numa": 0}, "b"], "links": [["X"]]}


@fuzzed
@given(found=broken([NUMA]))
def test_a_topology_of_which_some_values_are_others_is_read_or_named(file: Path, found: Any) -> None:
    file.write_bytes(msgspec.json.encode(found))
    with contextlib.suppress(InvalidRequest):
        from_file(file, GPUS, ())


@fuzzed
@given(raw=st.one_of(spoiled(b'{"3": {"kind": "fan", "reason": "rattles"}, "0": "hot"}'), st.binary(max_size=100)))
@example(raw=b"\xff")
@example(raw=b"[" * 100_000)
def test_a_hostile_health_file_is_read_or_named(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    with little_memory(), contextlib.suppress(InvalidRequest, ValueError, RecursionError):  # told by HealthMonitor
        Plugged(file_reader(file), GPUS).sample(threading.Event())


@fuzzed
@given(raw=st.one_of(spoiled(b'{"message": {"message": "ValueError: no"}}'), st.binary(max_size=100)))
@example(raw=b"\xff")
@example(raw=b"[" * 100_000)
def test_a_hostile_error_file_of_a_worker_is_read_or_left(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    with little_memory():
        assert isinstance(read_error({ERROR_FILE: str(file)}), str)


def view_lines() -> list[tuple[type[Any], str, bytes]]:
    pool = MemoryPool()
    pool.register(node_spec("n1", 4))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    node, ticket = pool.state.nodes["n1"], next(iter(pool.state.tickets.values()))
    return [
        (NodeStatus, "node_id", node_line(node, pool.state)),
        (TicketStatus, "ticket_id", ticket_line(ticket)),
    ]


VIEWS = view_lines()


@fuzzed
@given(st.sampled_from(VIEWS).flatmap(lambda one: st.tuples(st.just(one), spoiled(one[2]))))
def test_a_hostile_line_of_a_view_is_read_or_named(both: tuple[tuple[type[Any], str, bytes], bytes]) -> None:
    (cls, id_field, _), raw = both
    with contextlib.suppress(MalformedData):
        repr(row_of(cls, id_field, "it", raw))


@fuzzed
@given(st.sampled_from(VIEWS).flatmap(lambda one: st.tuples(st.just(one), broken([json.loads(one[2])]))))
def test_a_line_of_a_view_of_which_some_values_are_others_is_read_or_named(
    both: tuple[tuple[type[Any], str, bytes], Any],
) -> None:
    (cls, id_field, _), value = both
    with contextlib.suppress(MalformedData):
        repr(row_of(cls, id_field, "it", msgspec.json.encode(value)))


class Written(EventLog):
    """A log that stands here."""

    def __init__(self, entries: list[tuple[str, Fields]], marked: bytes | None = None) -> None:
        super().__init__(self, "spoke:{p}:events", "spoke:{p}:snapshot")
        self.entries, self.marked = entries, marked

    def hget(self, key: str, field: str) -> bytes | None:
        return self.marked if field == STRIKE else None

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[tuple[str, Fields]]:
        return iter(self.entries)


def history() -> tuple[list[tuple[str, Fields]], bytes]:
    pool, chain, entries = MemoryPool(), Chain(), list[tuple[str, Fields]]()
    pool.register(node_spec("n1", 4))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    for one in pool.log:
        args = event_args(one.event)
        flat = [item.encode() if isinstance(item, str) else item for item in [*args, "h", chain.link(one.id, args)]]
        entries.append((one.id, dict(zip(flat[::2], flat[1::2], strict=True))))
    return entries, snapshot.encode(pool.state)


HISTORY, STATE = history()
entries = st.dictionaries(
    st.one_of(st.sampled_from([b"type", b"v", b"ticket_id", b"h"]), st.binary(max_size=8)),
    st.one_of(st.sampled_from([b"gang.released", b"1", b"t-1", HISTORY[-1][1][FIELD]]), st.binary(max_size=5_000)),
    min_size=1,
    max_size=5,
)


@fuzzed
@given(entries, st.one_of(st.none(), st.binary(max_size=60), spoiled(b'{"id":"1-0","by":"ada","reason":"no"}')))
def test_what_is_written_into_a_log_by_hand_is_passed_over_or_named(fields: Fields, marked: bytes | None) -> None:
    foreign = f"{order_of(HISTORY[-1][0])[0] + 1}-0"
    log = Written([*HISTORY, (foreign, fields)], marked)
    read_strike(log)
    if fields.get(b"h") == HISTORY[-1][1][FIELD]:
        with pytest.raises(BlockedLog, match=foreign) as caught:
            take_up(log)
        assert len(str(caught.value)) < 20_000
        return
    found = take_up(log)
    (stray,) = found.strays
    assert len(stray.said) <= SAID_MAX + 2
    assert snapshot.encode(found.state) == STATE
    assert (found.end, found.last_hash) == (foreign, HISTORY[-1][1][FIELD].decode())
