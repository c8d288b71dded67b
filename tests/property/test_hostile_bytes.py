"""Everything that reads bytes from outside, fed with hostile ones: only the errors that are documented come out.

Frames, values and handshakes of the transport have the same kind of test with their unit tests.
``SPOKE_FUZZ_EXAMPLES`` raises the effort; the default fits into CI.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spoke.allocator.gate import Gate
from spoke.allocator.intake import Intake, size_of
from spoke.allocator.limits import Limits
from spoke.cli.job.schema import job_of, read_job
from spoke.errors import InvalidRequest, LogError
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.archive import Archive, BadSegment
from spoke.events.codec import DecodeError, decode_event, encode_event
from spoke.events.fold import fold
from spoke.events.invariants import violations
from spoke.events.model import parse_bytes
from spoke.events.snapshot import BadSnapshot
from spoke.events.state import PoolState
from spoke.protocol import launch, logs
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import parse_key, read_masters
from spoke.protocol.url import mask_url, parse_place, resolve_url
from spoke.transport.dial import parse_address
from tests.builders import MemoryPool, gang, node_spec
from tests.hostile import broken, hostile, spoiled

EXAMPLES = int(os.environ.get("SPOKE_FUZZ_EXAMPLES", "300"))
PEAK_BYTES = 64 << 20
"""No input here is larger than 1 MB; whoever believes what one claims would need gigabytes."""
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

Fields = dict[bytes, bytes]


def fields(flat: dict[str, Any]) -> Fields:
    return {k.encode(): v if isinstance(v, bytes) else str(v).encode() for k, v in flat.items()}


def read_json(raw: bytes) -> Any:
    return json.loads(raw)


def write_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def history() -> tuple[MemoryPool, list[o.Delivery], list[p.Message], list[r.Envelope]]:
    """A pool in which a bit of everything has happened, and what was said in it."""
    pool = MemoryPool()
    orders: list[o.Delivery] = []
    requests: list[r.Envelope] = []
    handle = pool.handle

    def listen(asked: Any) -> None:
        requests.append(asked)
        handle(asked)
        for agent in pool.agents.values():
            orders.extend(delivery for delivery in agent.orders if delivery not in orders)

    pool.handle = listen  # type: ignore[method-assign]
    pool.register(node_spec("n1"))
    pool.register(node_spec("n2"))
    pool.connect("c")
    pool.allocate("c", gang(2, 2))
    pool.launch("c", "t-1", (0, 1, 2, 3))
    pool.settle()
    pool.allocate("c", gang(1, 4), timeout_ms=None)
    pool.allocate("c", gang(1, 1, 0.5))
    pool.ask("c", r.StopActor("t-1", 0))
    pool.settle()
    pool.ask("c", r.ReleaseGang("t-1"))
    messages = [one for found in (*pool.answers.values(), *pool.notices.values()) for one in found]
    return pool, orders, messages, requests


POOL, ORDERS, MESSAGES, REQUESTS = history()
EVENTS = [fields(encode_event(recorded.event)) for recorded in POOL.log]
NAMES = st.one_of(st.sampled_from([b"", b"c", b"n1", b"i1", b"1", b"7", b"\xff" * 300]), st.binary(max_size=12))


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """AssertionError if what is read here took much more memory than it is long."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


def one_field_broken(entries: list[Fields]) -> st.SearchStrategy[Fields]:
    """Stream entries of which some fields are gone, or hold something else."""

    def spoil(entry: Fields) -> st.SearchStrategy[Fields]:
        def of(name: bytes) -> st.SearchStrategy[bytes]:
            try:
                read_json(entry[name])
            except ValueError:
                return NAMES
            return st.one_of(hostile([entry[name]], read_json, write_json), NAMES)

        changed = st.sampled_from(sorted(set(entry) - {b"type", b"v"}) or sorted(entry)).flatmap(
            lambda name: of(name).map(lambda value: {**entry, name: value})
        )
        dropped = st.sampled_from(sorted(entry)).map(lambda name: {k: v for k, v in entry.items() if k != name})
        renamed = st.tuples(st.sampled_from([b"type", b"v"]), NAMES).map(lambda pair: {**entry, pair[0]: pair[1]})
        return st.one_of(changed, changed, changed, dropped, renamed)

    return st.sampled_from(entries).flatmap(spoil)


RAW_REQUESTS = [fields(r.encode_request(envelope)) for envelope in REQUESTS]
zipped = functools.partial(gzip.compress, mtime=0)
noise = st.dictionaries(NAMES, NAMES, max_size=5)


@fuzzed
@given(st.one_of(one_field_broken(RAW_REQUESTS), noise))
def test_a_hostile_request_is_decided_or_refused_and_the_pool_stays_whole(raw: Fields) -> None:
    with little_memory():
        asked = Gate("p").admit(raw)
        assert len(getattr(asked, "reason", "")) < 1_500
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    intake = Intake("0-0", outstanding_max=100)
    intake.put("1-0", asked, size_of(raw))
    for one in intake.take(10):
        before = len(pool.log)
        pool.handle(Limits().apply(pool.state, one))
        if isinstance(one, r.Garbage):
            assert [type(recorded.event) for recorded in pool.log[before:]] in ([e.RequestRefused], [])
            assert one.seq == 0 or not one.client_id or len(pool.log) > before or pool.state.client(one.client_id)
    assert violations(pool.state) == []


@fuzzed
@given(st.one_of(one_field_broken(RAW_REQUESTS), noise))
def test_with_a_master_key_nothing_hostile_passes_the_gate(raw: Fields) -> None:
    asked = Gate("p", [b"m" * 32]).admit(raw)
    assert isinstance(asked, r.Garbage)
    assert asked.code == "authentication"


@fuzzed
@given(st.one_of(one_field_broken([fields(o.encode_order(one)) for one in ORDERS]), noise))
def test_a_hostile_order_is_read_or_named(raw: Fields) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        o.decode_order(raw)


def _write_message(value: Any) -> bytes:
    head, body = value
    return str(head).encode(errors="replace") + b" " + write_json(body)


def _read_message(raw: bytes) -> Any:
    head, _, body = raw.partition(b" ")
    return [head.decode(), read_json(body)]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    raw = p.encode_message(draw(st.sampled_from(MESSAGES)))
    head, _, body = raw.partition(b" ")
    return (
        draw(st.sampled_from([head, b"resync", b"granted", b""])) + b" " + draw(hostile([body], read_json, write_json))
    )


@fuzzed
@given(st.one_of(messages(), st.binary(max_size=100)))
def test_a_hostile_reply_is_read_or_named(raw: bytes) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        p.decode_message(raw)


@fuzzed
@given(st.integers(0, len(EVENTS) - 1), st.data())
def test_a_hostile_event_is_read_or_named_and_folded_or_refused(at: int, data: st.DataObject) -> None:
    state = PoolState()
    for recorded in POOL.log[:at]:
        fold(state, recorded)
    raw = data.draw(st.one_of(one_field_broken([EVENTS[at]]), noise))
    with little_memory(), contextlib.suppress(LogError):
        fold(state, decode_event(POOL.log[at].id, raw))


def _read_msgpack(raw: bytes) -> Any:
    return msgspec.msgpack.decode(raw)


STATES = [snapshot.encode(POOL.state)]


@fuzzed
@given(hostile(STATES, _read_msgpack, msgspec.msgpack.encode))
def test_a_hostile_snapshot_is_read_or_named(raw: bytes) -> None:
    with little_memory(), contextlib.suppress(BadSnapshot):
        snapshot.decode(raw)


BLOB = launch.encode_blob(launch.LaunchBlob(b"secret", b"args", {"A": "b"}))


@fuzzed
@given(hostile([launch.pack_blobs((BLOB, b"x")), launch.pack_blobs((b"",))], _read_msgpack, msgspec.msgpack.encode))
def test_hostile_launch_blobs_are_read_or_named(raw: bytes) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        assert len(launch.unpack_blobs(raw, 2)) == 2


@fuzzed
@given(hostile([BLOB], _read_msgpack, msgspec.msgpack.encode))
def test_a_hostile_launch_blob_is_read_or_named(raw: bytes) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        launch.decode_blob(raw)


HEAD = {"spoke": "segment", "version": 3, "pool": "p", "h": "00", "state": STATES[0].decode("latin-1")}


def segment() -> bytes:
    blocks = [
        {"names": ["type"], "columns": [["x"]]},
        {"names": ["type", "v", "client_id", "seq"], "columns": [["client.closed"], [1], ["c"], [3]]},
    ]
    odd = [[["type", "z"]]]
    columns = {"ids": ["1-0", "2-0", "2-1"], "order": [0, 1, -1], "blocks": blocks, "h": "0" * 64, "odd": odd}
    lines = [HEAD, columns, {"events": 3, "checksum": "0" * 64}]
    return b"".join(write_json(line) + b"\n" for line in lines)


def _read_lines(raw: bytes) -> Any:
    return [read_json(line) for line in raw.splitlines()]


def _write_lines(value: Any) -> bytes:
    return b"".join(write_json(line) + b"\n" for line in value)


@fuzzed
@given(
    st.one_of(
        hostile([segment()], _read_lines, _write_lines).map(zipped),
        spoiled(zipped(segment())),
    )
)
def test_a_hostile_segment_is_named(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "1-0_2-0.jsonl.gz").write_bytes(raw)
        archive = Archive(Path(folder), "p")
        with little_memory(), pytest.raises(BadSegment):
            list(archive.raw())
        with little_memory(), pytest.raises(BadSegment):
            list(archive.batches())
        with little_memory(), pytest.raises(BadSegment):
            list(archive.links())


@fuzzed
@given(hostile([write_json(HEAD)], read_json, write_json))
def test_a_hostile_state_before_a_segment_is_read_or_named(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "1-0_2-0.jsonl.gz").write_bytes(zipped(raw + b"\n"))
        with little_memory(), contextlib.suppress(LogError):
            Archive(Path(folder), "p").base()


@fuzzed
@given(st.from_regex(r"[0-9a-z\-]{0,8}_[0-9a-z\-_]{0,8}", fullmatch=True))
def test_a_hostile_file_name_in_an_archive_is_named(name: str) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.jsonl.gz").touch()
        archive = Archive(Path(folder), "p")
        with contextlib.suppress(BadSegment):
            archive.last_id()
        with contextlib.suppress(BadSegment):
            list(archive.raw("1-0"))


URLS = [
    "redis://user:secret@host:6379/0?ssl_ca_certs=/x",
    "rediss://[::1]:1/9",
    "unix://user:secret@/path",
    "redis+sentinel://user:secret@a:1,b:2/service/0",
    "rediss+cluster://a,b:7000?sentinel_password=secret",
    "file:///nowhere",
    "tcp://host:1234",
]
urls = st.one_of(
    st.sampled_from(URLS).flatmap(
        lambda url: st.tuples(st.integers(0, len(url)), st.integers(0, 6), st.text(max_size=6)).map(
            lambda cut: url[: cut[0]] + cut[2] + url[cut[0] + cut[1] :]
        )
    ),
    st.tuples(
        st.sampled_from(["redis://", "redis+sentinel://", "redis+cluster://", "unix://", "file://"]), st.text()
    ).map("".join),
)


@fuzzed
@given(urls)
@example("file:///\x00nowhere")
def test_a_hostile_url_is_read_or_named(url: str) -> None:
    mask_url(url)
    with contextlib.suppress(InvalidRequest):
        parse_place(resolve_url(url))
    with contextlib.suppress(InvalidRequest):
        parse_address(url)


@fuzzed
@given(st.binary(max_size=200))
def test_a_file_that_should_hold_a_url_or_keys_and_holds_noise_is_named(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.touch(mode=0o600)
        path.write_bytes(raw)
        with contextlib.suppress(InvalidRequest):
            parse_place(resolve_url(path.as_uri()))
        with contextlib.suppress(InvalidRequest):
            read_masters(path)


@fuzzed
@given(st.one_of(st.text(max_size=40), st.from_regex(r"(user|node|admin):[a-z*]{0,3}:[0-9a-fA-Fx ]{0,70}")))
def test_a_hostile_key_or_size_is_read_or_named(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_key(text)
    with contextlib.suppress(InvalidRequest):
        parse_bytes(text)


ASKS = [
    fields(logs.encode_ask(logs.ReadLogs("t-1", wanted, 500), "r-1", 7, opens=b"k" * 16, pool="p", node_id="n1"))
    for wanted in ((), (logs.Wanted(0, "1-0", 5), logs.Wanted(1, "1-1", tail=10)))
]
ANSWERS = [
    fields(logs.encode_answer(7, answer, data))
    for answer, data in (
        (logs.LogsAnswer((logs.Piece(0, "1-0", 5, 3, 0, 8),)), b"abc"),
        (logs.LogsAnswer(files=(logs.LogFile(0, "1-0", 0, 8, 1, 2),), code="not_found", reason="gone"), b""),
    )
]


@fuzzed
@given(st.one_of(one_field_broken(ASKS), noise))
def test_a_hostile_ask_for_logs_is_read_or_named(raw: Fields) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        asked = logs.decode_ask(raw)
        assert "/" not in asked.ask.ticket_id
        assert all("/" not in one.actor and one.rank >= 0 for one in asked.ask.wanted), "they become parts of a path"


@fuzzed
@given(st.one_of(one_field_broken(ANSWERS), noise))
def test_a_hostile_answer_about_logs_is_read_or_named(raw: Fields) -> None:
    with little_memory(), contextlib.suppress(DecodeError):
        logs.decode_answer(raw)


JOB = b"""nodes: 1:2
actors_per_node: 2
gpus_per_actor: 0.5
where: {rack: [r1, r2]}
env: {A: 1}
restart: {policy: gang, max_restarts: 3}
groups: {head: {command: python head.py}, body: {nodes: 2, health: {interval: 5s}, exit_hook: [true]}}
command: [python, train.py]
"""
assert job_of(yaml.safe_load(JOB.replace(b"1:2", b"'1:2'").replace(b"[true]", b"['true']")), "job.yaml").nodes == "1:2"


@fuzzed
@given(st.one_of(spoiled(JOB), st.binary(max_size=200)), st.sampled_from(["job.yaml", "job.toml"]))
def test_a_hostile_job_file_is_read_or_named(raw: bytes, name: str) -> None:
    with TemporaryDirectory() as folder, little_memory():
        path = Path(folder) / name
        path.write_bytes(raw)
        with contextlib.suppress(InvalidRequest):
            read_job(str(path))


@fuzzed
@given(broken([yaml.safe_load(JOB)]))
def test_a_job_of_which_some_of_the_values_are_others_is_read_or_named(job: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        job_of(job, "job.yaml")
