"""Spans of client, allocator and agent, one by one, with the SDK's exporter in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from spoke.agent import instructions as i
from spoke.agent.tracing import AgentTracing
from spoke.agent.watcher import watchers as agent_watchers
from spoke.allocator.gate import Gate
from spoke.allocator.tracing import AllocatorTracing
from spoke.allocator.watcher import Watchers, watchers
from spoke.cli.tracing import exporter_name, traced
from spoke.client.tracing import ClientTracing
from spoke.errors import AllocationError, InvalidRequest
from spoke.events import types as e
from spoke.events.model import ActorSpec
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from spoke.protocol.launch import LaunchBlob, encode_blob
from spoke.protocol.tracing import Tracing, in_use, traceparent
from tests.builders import gang

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = PoolState()


class Spans:
    """A provider of its own, and what has ended so far."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self.provider)

    def ended(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def one(self) -> Any:
        (span,) = self.ended()
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    found = Spans()
    yield found
    found.provider.shutdown()


def parent_of(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01"


# --- the client ---


def allocate(spans: Spans) -> tuple[ClientTracing, Future[Any], r.AllocateGang]:
    client = ClientTracing(spans.tracing, "p", "c-1")
    future: Future[Any] = Future()
    asked: list[r.AllocateGang] = []

    def ask(request: r.AllocateGang) -> Future[Any]:
        asked.append(request)
        return future

    assert client.allocate(r.AllocateGang(gang(2, 4, name="resnet"), 1_000), ask) is future
    return client, future, asked[0]


class Granted:
    ticket_id = "t-7"


def test_a_client_asks_within_a_span_that_ends_with_the_answer(spans: Spans) -> None:
    _, future, asked = allocate(spans)
    assert spans.ended() == []
    future.set_result(Granted())
    span = spans.one()
    assert asked.trace == traceparent(span)
    assert span.name == "spoke.gang_allocate"
    assert {"spoke.ticket_id": "t-7", "spoke.gang": "2x4", "spoke.name": "resnet"}.items() <= dict(
        span.attributes
    ).items()


def test_what_goes_wrong_is_in_the_span(spans: Spans) -> None:
    _, future, _ = allocate(spans)
    future.set_exception(AllocationError("it cannot fit"))
    _, cancelled, _ = allocate(spans)
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()

    def refuse(request: r.AllocateGang) -> Future[Any]:
        raise InvalidRequest("no such thing")

    with pytest.raises(InvalidRequest):
        ClientTracing(spans.tracing, "p", "c").allocate(r.AllocateGang(gang()), refuse)
    assert [span.attributes["error.type"] for span in spans.ended()] == [
        "AllocationError",
        "cancelled",
        "InvalidRequest",
    ]
    assert spans.ended()[0].status.description == "it cannot fit"


def test_a_launch_belongs_to_the_trace_of_its_gang_or_of_who_asks(spans: Spans) -> None:
    client, future, asked = allocate(spans)
    future.set_result(Granted())
    contexts: list[str] = []

    def launch(context: str) -> Future[Any]:
        contexts.append(context)
        done: Future[Any] = Future()
        done.set_result([])
        return done

    client.launch("t-7", "Worker", launch)
    with spans.provider.get_tracer("mine").start_as_current_span("step") as mine:
        client.launch("t-7", "Worker", launch)
    client.launch("t-8", "Worker", launch)
    of_gang, of_mine, alone = [span for span in spans.ended() if span.name == "spoke.launch"]
    assert parent_of(of_gang)[:-3] == asked.trace[:-3]
    assert of_mine.parent.span_id == mine.get_span_context().span_id
    assert alone.parent is None
    assert contexts == [traceparent(span) for span in (of_gang, of_mine, alone)]


# --- the allocator ---


class Allocator:
    """What an allocator that is traced does, step by step."""

    def __init__(self, spans: Spans) -> None:
        self.tracing = AllocatorTracing(spans.tracing, "p")
        self.gate = self.tracing.gate(Gate("p"))
        self.tracing.begin_term()

    def ask(self, seq: int = 1, trace: str = PARENT) -> None:
        raw = r.encode_request(r.Envelope(r.AllocateGang(gang(), None, trace), "c-1", seq))
        encoded = {k.encode(): v if isinstance(v, bytes) else str(v).encode() for k, v in raw.items()}
        admitted = self.gate.admit(encoded)
        assert isinstance(admitted, r.Envelope)

    def record(self, event: e.Event, event_id: str = "5-0") -> None:
        self.tracing.event(event, STATE, 0, event_id)

    def commit(self) -> None:
        self.tracing.commit_sent()
        self.tracing.commit_ended()


ALLOCATED = e.GangAllocated("t-1", "c-1", 1, gang(), (), "a", 1, "pack/1")
QUEUED = e.GangQueued("t-1", "c-1", 1, gang(), 0, "needs 1 GPU")


def test_a_decision_lasts_from_the_inbox_to_the_log(spans: Spans) -> None:
    allocator = Allocator(spans)
    allocator.ask()
    allocator.record(ALLOCATED, "5-1")
    allocator.tracing.commit_sent()
    assert spans.ended() == []
    allocator.tracing.commit_ended()
    span = spans.one()
    assert (span.name, parent_of(span)) == ("spoke.decide", PARENT)
    said = {
        "spoke.event": "gang.allocated",
        "spoke.event_id": "5-1",
        "spoke.ticket_id": "t-1",
        "spoke.reason": "pack/1",
    }
    assert said.items() <= dict(span.attributes).items()


def test_the_wait_in_line_is_a_span_of_its_own(spans: Spans) -> None:
    allocator = Allocator(spans)
    allocator.ask()
    allocator.ask()  # sent twice
    allocator.record(QUEUED, "5-0")
    allocator.commit()
    allocator.record(ALLOCATED, "9-0")
    allocator.commit()
    decide, wait = spans.ended()
    assert (decide.name, decide.attributes["spoke.reason"]) == ("spoke.decide", "needs 1 GPU")
    assert (wait.name, wait.parent.span_id) == ("spoke.wait", decide.context.span_id)
    assert wait.attributes["spoke.event_id"] == "9-0"


@pytest.mark.parametrize(
    "end",
    [e.GangRefused("t-1", "c-1", 1, gang(), "timeout", "its time was over"), e.GangCancelled("t-1", "c-1", 2, "x")],
)
def test_a_wait_ends_with_a_refusal_or_a_withdrawal(spans: Spans, end: e.Event) -> None:
    allocator = Allocator(spans)
    allocator.ask()
    allocator.record(QUEUED)
    allocator.record(end)
    allocator.commit()
    wait = spans.ended()[1]
    assert (wait.name, wait.attributes["spoke.event"]) == ("spoke.wait", end.TYPE)
    assert (wait.attributes.get("error.type") == "timeout") == isinstance(end, e.GangRefused)


@pytest.mark.parametrize("trace", ["", "00-zz", PARENT + "0" * 200, "01" + PARENT[2:]])
def test_a_request_without_a_context_is_not_traced(spans: Spans, trace: str) -> None:
    allocator = Allocator(spans)
    allocator.ask(trace=trace)
    allocator.record(ALLOCATED)
    allocator.commit()
    assert spans.ended() == []


def test_a_new_term_knows_nothing_of_the_one_before(spans: Spans) -> None:
    allocator = Allocator(spans)
    allocator.ask()
    allocator.record(QUEUED)
    allocator.tracing.commit_sent()
    allocator.tracing.end_term()
    allocator.tracing.begin_term()
    allocator.record(ALLOCATED)
    allocator.commit()
    assert spans.ended() == []


# --- the agent ---


def start(parent: str, launch_id: str = "7-0") -> i.Spawn:
    order = o.StartActor(
        ticket_id="t-1",
        launch_id=launch_id,
        actor_id="w-0",
        spec=ActorSpec("Worker"),
        rank=0,
        local_rank=0,
        group_rank=0,
        world_size=1,
        local_world_size=1,
        num_nodes=1,
        gpu_ids=(),
        gpu_uuids=(),
        master_addr="",
        master_port=0,
        grace_s=1.0,
    )
    return i.Spawn(order, encode_blob(LaunchBlob(b"s", b"", {"TRACEPARENT": parent} if parent else {})))


def send(report: r.Request) -> i.Send:
    return i.Send(r.Envelope(report, node_id="n0", incarnation="i"))


def test_a_launch_lasts_from_the_order_until_the_actor_is_ready(spans: Spans) -> None:
    agent = AgentTracing(spans.tracing, "p", "n0")
    agent.watch(start(PARENT))
    agent.spawned("7-0")
    assert spans.ended() == []
    agent.watch(send(r.ReportStarted("t-1", 0, "7-0", 4711, "tcp://x")))
    process, span = spans.ended()
    assert (span.name, parent_of(span)) == ("spoke.agent.launch", PARENT)
    assert {"spoke.node_id": "n0", "spoke.runs": "Worker", "spoke.rank": 0}.items() <= dict(span.attributes).items()
    assert process.name == "spoke.actor.start"
    assert process.parent.span_id == span.context.span_id
    assert span.start_time <= process.start_time <= process.end_time <= span.end_time
    assert {"spoke.pid": 4711, "spoke.runs": "Worker"}.items() <= dict(process.attributes).items()


def test_a_process_that_does_not_come_up_fails_its_span_and_its_launch(spans: Spans) -> None:
    agent = AgentTracing(spans.tracing, "p", "n0")
    agent.watch(start(PARENT))
    agent.spawned("7-0")
    agent.watch(send(r.ReportStartFailed("t-1", 0, "7-0", "no such type")))
    assert [span.name for span in spans.ended()] == ["spoke.actor.start", "spoke.agent.launch"]
    assert [span.events[0].attributes["spoke.reason"] for span in spans.ended()] == ["no such type"] * 2


def test_a_launch_that_fails_says_why(spans: Spans) -> None:
    agent = AgentTracing(spans.tracing, "p", "n0")
    for number in range(3):
        agent.watch(start(PARENT, f"{number}-0"))
    agent.watch(send(r.ReportStartFailed("t-1", 0, "0-0", "no such type")))
    agent.watch(send(r.ReportExited("t-1", 0, "1-0", 1, 0)))
    agent.watch(i.KillAll())
    agent.watch(start(PARENT, "3-0"))
    agent.watch(send(r.ReportRestarting("t-1", 0, "3-0", 1, 1, 0, "", 100)))
    agent.watch(start(PARENT, "4-0"))
    agent.watch(send(r.ReportHalted("t-1", 0, "4-0", 1, 0)))
    reasons = [span.events[0].attributes["spoke.reason"] for span in spans.ended()]
    assert reasons[:2] == ["no such type", "it ended before it was up"]
    assert "killed" in reasons[2]
    assert "started again" in reasons[3]
    assert "restart of its gang" in reasons[4]
    assert {span.attributes["error.type"] for span in spans.ended()} == {"start_failed"}


@pytest.mark.parametrize(
    "step", [start(""), start("no"), i.Spawn(start(PARENT).order, b"\xff"), i.Spawn(start("").order, b"")]
)
def test_a_launch_without_a_context_is_not_traced(spans: Spans, step: i.Spawn) -> None:
    agent = AgentTracing(spans.tracing, "p", "n0")
    agent.watch(step)
    agent.spawned("7-0")
    agent.watch(send(r.ReportStarted("t-1", 0, "7-0", 1, "")))
    agent.watch(send(r.ReportExited("t-1", 0, "7-0", 1, 0)))
    assert spans.ended() == []


# --- when it is in use ---


def test_nobody_pays_who_does_not_trace() -> None:
    assert in_use() is None, "no provider is set"
    assert watchers(None, None) is None
    assert agent_watchers(None) is None
    assert "trace" in r.AllocateGang.__struct_fields__
    assert r.AllocateGang(gang()).trace == ""


def test_several_look_on_as_one(spans: Spans) -> None:
    one, other = AllocatorTracing(spans.tracing, "p"), AllocatorTracing(spans.tracing, "p")
    assert watchers(None, one) is one
    both = watchers(one, other)
    assert isinstance(both, Watchers)
    both.begin_term()
    both.event(ALLOCATED, STATE, 0, "1-0")
    both.commit_sent()
    both.commit_ended()
    both.answer(STATE, 0)
    both.end_term()
    agent = AgentTracing(spans.tracing, "p", "n0")
    two = agent_watchers(agent, AgentTracing(spans.tracing, "p", "n1"))
    assert two is not None
    two.watch(start(PARENT))
    two.watch(send(r.ReportStarted("t-1", 0, "7-0", 1, "")))
    assert len(spans.ended()) == 2


def test_the_exporter_goes_by_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    assert (exporter_name("otlp"), exporter_name("console")) == ("otlp_proto_http", "console")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert exporter_name("otlp") == "otlp_proto_grpc"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert exporter_name("otlp") == "otlp_proto_http"


def test_a_daemon_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(False, "x") as nothing:
        assert nothing is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nowhere")
    with pytest.raises(InvalidRequest, match="pip install nowhere"), traced(True, "x"):
        pass
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with traced(True, "x") as tracing:
        assert tracing is not None
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidRequest, match=r"spoke-scheduler\[otel\]"), traced(True, "x"):
        pass
