"""Unhealthy GPUs: not given out, their holders told; what NVML, a file or a function says of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from spoke.agent import instructions as i
from spoke.agent.health import HealthMonitor, Plugged, Trouble, file_reader, source_of
from spoke.agent.machine import AgentMachine, Settings
from spoke.agent.nvml import Judge, NvmlSource, Sample
from spoke.errors import InvalidRequest, InvalidTransition
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import Gpu, Slot
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Signer
from tests.builders import FakeAgent, MemoryPool, gang, node_spec


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    pool.register(node_spec("n1", 4))
    pool.connect("c")
    pool.connect("op")
    return pool


def report(pool: MemoryPool, index: int, kind: str = "", reason: str = "") -> None:
    agent = pool.agents["n1"]
    pool.report(agent, r.ReportHealth((r.GpuReport(index, f"n1-gpu-{index}", kind, reason),)))


def mark(pool: MemoryPool, index: int, healthy: bool, reason: str = "") -> p.Message | None:
    return pool.ask("op", r.MarkGpu("n1", index, healthy, reason))


def gpus_of(pool: MemoryPool, ticket_id: str) -> list[int]:
    return [index for slot in pool.state.tickets[ticket_id].slots for index in slot.gpu_ids]


# --- the pool ----------------------------------------------------------------------------------------------------


def test_an_unhealthy_gpu_is_not_given_out_until_it_is_healthy_again(pool: MemoryPool) -> None:
    report(pool, 1, "ecc", "3 uncorrected ECC errors")
    pool.allocate("c", gang(1, 3))
    assert gpus_of(pool, "t-1") == [0, 2, 3]
    asked = pool.request("c", r.AllocateGang(gang(), None))
    assert pool.answer("c", asked) is None
    report(pool, 1)
    assert gpus_of(pool, "t-2") == [1]
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_a_log_that_gives_out_an_unhealthy_gpu_does_not_fold(pool: MemoryPool) -> None:
    report(pool, 1, "ecc", "bad")
    slot = Slot(0, 0, 0, "n1", "127.0.0.1", (1,), ("n1-gpu-1",))
    event = e.GangAllocated("t-1", "c", 9, gang(), (slot,), "127.0.0.1", 0, "pack/1")
    with pytest.raises(InvalidTransition, match="something was handed out twice"):
        fold(pool.state, e.Recorded("9999999-0", event))


def test_a_gang_that_needs_an_unhealthy_gpu_waits_aside_and_holds_nobody_up(pool: MemoryPool) -> None:
    report(pool, 1, "xid", "Xid 79")
    for spec in (gang(1, 4), gang(1, 1, gpu_ids=(1,)), gang(1, 8, 0.5)):
        pool.request("c", r.AllocateGang(spec, None))
    assert len(pool.state.queue) == 3
    assert isinstance(pool.allocate("c", gang(1, 1)), p.Granted)


def test_the_holder_is_told_and_keeps_what_it_has(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 2))
    pool.launch("c", "t-1", (0, 1))
    pool.settle()
    report(pool, 1, "temperature", "95 degrees")
    (told,) = [one.notice for one in pool.notices["c"] if isinstance(one, p.TicketNotice)]
    assert (told.ticket_id, told.kind, told.node_id, told.ranks) == ("t-1", "gpu_unhealthy", "n1", (1,))
    assert told.reason == "GPU 1 of node n1 is unhealthy (temperature): 95 degrees"
    assert pool.agents["n1"].orders[-1].order == o.NotifyActors(told)
    assert gpus_of(pool, "t-1") == [0, 1]
    pool.ask("c", r.ReleaseGang("t-1"))
    pool.settle()
    node = pool.state.nodes["n1"]
    assert node.free_gpus == 0b1101
    assert node.free == node.total
    report(pool, 1)
    assert node.free_gpus == 0b1111


def test_nothing_more_is_given_of_an_unhealthy_gpu_that_is_shared(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 2, 0.25))
    assert gpus_of(pool, "t-1") == [0, 0]
    report(pool, 0, "ecc", "bad")
    pool.check()
    pool.allocate("c", gang(1, 1, 0.25))
    assert gpus_of(pool, "t-2") == [1]
    report(pool, 0)
    pool.check()
    pool.allocate("c", gang(1, 1, 0.5))
    assert gpus_of(pool, "t-3") == [0]
    report(pool, 0, "ecc", "bad")
    for ticket in ("t-1", "t-2", "t-3"):
        pool.ask("c", r.ReleaseGang(ticket))
    pool.check()
    assert pool.state.nodes["n1"].free_gpus == 0b1110


def test_a_gpu_that_is_held_becomes_free_only_when_it_is_given_back(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 4))
    report(pool, 2, "ecc", "bad")
    report(pool, 2)
    assert pool.state.nodes["n1"].free_gpus == 0
    pool.check()


def test_a_node_that_comes_back_keeps_its_unhealthy_gpus(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 2, detached=True))
    report(pool, 0, "ecc", "bad")
    mark(pool, 3, False, "smells")
    pool.expire_node("n1")
    pool.register(node_spec("n1", 4))
    assert pool.state.nodes["n1"].unhealthy == 0b1001
    pool.ask("c", r.ReleaseGang("t-1"))
    pool.report(pool.agents["n1"], r.LeaveNode())
    assert "n1" not in pool.state.nodes
    pool.register(node_spec("n1", 4))
    assert pool.state.nodes["n1"].free_gpus == 0b0110
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_what_an_operator_said_stands_until_an_operator_says_otherwise(pool: MemoryPool) -> None:
    assert mark(pool, 0, False, "smells") == p.Done()
    report(pool, 0)
    report(pool, 0, "ecc", "bad")
    fault = pool.state.faults["n1"]["n1-gpu-0"]
    assert (fault.kind, fault.reason, fault.by) == ("operator", "smells", "op")
    assert mark(pool, 0, True) == p.Done()
    assert mark(pool, 0, True) == p.Done(False)
    assert pool.state.faults == {}


def test_an_operator_may_clear_what_a_source_found(pool: MemoryPool) -> None:
    report(pool, 0, "ecc", "bad")
    events = len(pool.log)
    report(pool, 0, "ecc", "bad")
    assert len(pool.log) == events, "the same again is no news"
    assert mark(pool, 0, True, "was reset") == p.Done()
    assert pool.state.nodes["n1"].free_gpus == 0b1111


def test_reports_of_strangers_and_of_gpus_that_are_not_there_change_nothing(pool: MemoryPool) -> None:
    stranger = FakeAgent(node_spec("n1"), "older")
    pool.report(stranger, r.ReportHealth((r.GpuReport(0, "n1-gpu-0", "ecc", "bad"),)))
    pool.report(pool.agents["n1"], r.ReportHealth((r.GpuReport(0, "other", "ecc", "bad"), r.GpuReport(9, "x", "ecc"))))
    assert pool.state.faults == {}
    failed = mark(pool, 9, False)
    assert isinstance(failed, p.Failed)
    assert "the node has GPUs 0, 1, 2, 3" in failed.reason


def test_marking_is_for_operators() -> None:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect("eve.1")
    pool.handle(r.Envelope(r.MarkGpu("n1", 0, False), "eve.1", 2, signer=Signer("user", "eve")))
    answer = pool.answer("eve.1", 2)
    assert isinstance(answer, p.Failed)
    assert answer.code == "forbidden"


# --- the agent's machine -----------------------------------------------------------------------------------------


def health_in(steps: list[i.Instruction]) -> list[tuple[int, str]]:
    sent = [step.envelope.request for step in steps if isinstance(step, i.Send)]
    return [(gpu.index, gpu.kind) for one in sent if isinstance(one, r.ReportHealth) for gpu in one.gpus]


def test_the_agent_says_all_when_it_has_joined_and_then_what_changes() -> None:
    machine = AgentMachine(Settings(node_spec("n1", 3), "token", 10_000))
    machine.start(0.0)
    assert health_in(machine.health({1: ("ecc", "bad")})) == []
    machine.order(o.Delivery(machine.incarnation, o.Welcome(10_000)), 0.1)
    joined = machine.renewed(machine.incarnation, 0.1, True, 0.2)
    assert health_in(joined) == [(0, ""), (1, "ecc"), (2, "")]
    assert health_in(machine.health({1: ("ecc", "bad"), 2: ("xid", "79")})) == [(2, "xid")]
    assert health_in(machine.health({2: ("xid", "79")})) == [(1, "")]


def test_an_agent_without_a_source_says_nothing() -> None:
    machine = AgentMachine(Settings(node_spec("n1", 3), "token", 10_000))
    machine.start(0.0)
    machine.order(o.Delivery(machine.incarnation, o.Welcome(10_000)), 0.1)
    assert health_in(machine.renewed(machine.incarnation, 0.1, True, 0.2)) == []


# --- sources -----------------------------------------------------------------------------------------------------

GPUS = tuple(Gpu(index, f"GPU-{index}") for index in range(3))


def test_a_file_names_gpus_by_index_or_uuid(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    source, never = source_of(str(path), GPUS), threading.Event()
    never.set()  # no waiting between samples
    assert source.sample(never) == {}
    path.write_text(json.dumps({"0": "rattles", "GPU-2": {"kind": "power", "reason": "low"}, "1": ""}))
    assert source.sample(never) == {0: Trouble("reported", "rattles"), 2: Trouble("power", "low")}
    path.write_text('{"7": "x"}')
    with pytest.raises(InvalidRequest, match="GPU '7'"):
        source.sample(never)
    path.write_text("[]")
    with pytest.raises(InvalidRequest, match="JSON object"):
        file_reader(path)()


def test_a_function_is_a_source() -> None:
    source = source_of(f"{__name__}:_probe", GPUS)
    assert source.sample(threading.Event()) == {1: Trouble("reported", "probe failed")}
    for bad in ("no.such:thing", f"{__name__}:GPUS", f"{__name__}:nothing"):
        with pytest.raises(InvalidRequest):
            source_of(bad, GPUS)


def _probe() -> dict[int, str]:
    return {1: "probe failed"}


def test_the_monitor_tells_of_changes_and_survives_a_source_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    said: list[Any] = [{}, {"0": "bad"}, {"0": "bad"}, OSError("gone"), {"0": "bad"}, {}]
    told: list[Any] = []
    over = threading.Event()

    def read() -> dict[str, str]:
        if not said:
            over.set()
            return {}
        now = said.pop(0)
        if isinstance(now, Exception):
            raise now
        return now  # type: ignore[no-any-return]

    monitor = HealthMonitor(Plugged(read, GPUS, every_s=0.001), told.append)
    monitor.start()
    assert over.wait(10)
    monitor.stop()
    assert told == [{}, {0: Trouble("reported", "bad")}, {}]
    assert "gone" in caplog.text


# --- NVML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (Sample(temperature=40, limit=90), ""),
        (Sample(uncorrected_ecc=2), "ecc"),
        (Sample(remap_failed=True), "memory"),
        (Sample(pages_pending=True), "memory"),
        (Sample(lost="GPU is lost"), "lost"),
        (Sample(xids=(79,)), "xid"),
        (Sample(xids=(31, 43)), ""),
    ],
)
def test_what_a_sample_says(sample: Sample, kind: str) -> None:
    found = Judge().see(sample)
    assert (found.kind if found else "") == kind


def test_a_gpu_is_hot_after_three_samples_in_a_row_and_cool_well_below_the_limit() -> None:
    judge = Judge()

    def verdicts(*temperatures: int) -> list[bool]:
        return [judge.see(Sample(temperature=t, limit=90)) is not None for t in temperatures]

    assert verdicts(91, 91, 89, 91, 91) == [False] * 5
    assert verdicts(92) == [True]
    assert verdicts(86, 84, 84, 86) == [True] * 4
    assert verdicts(85, 85, 85) == [True, True, False]


def test_what_only_a_reset_heals_is_remembered() -> None:
    judge = Judge()
    assert judge.see(Sample(xids=(48,))) == judge.see(Sample(temperature=30, limit=90))


class FakeNvml:
    """As much of pynvml as the source uses: one GPU is lost, one is hot, one has never heard of ECC."""

    NVML_ERROR_TIMEOUT, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_NOT_FOUND, NVML_ERROR_RESET_REQUIRED = 10, 15, 6, 16
    NVML_TEMPERATURE_GPU = NVML_VOLATILE_ECC = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"NVML {value}")
            self.value = value

    def __init__(self) -> None:
        self.open, self.xids = 0, [("GPU-0", 79)]
        self.lost: set[str] = set()

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlEventSetCreate(self) -> object:
        return object()

    def nvmlEventSetFree(self, events: object) -> None:
        pass

    def nvmlDeviceRegisterEvents(self, handle: str, kinds: int, events: object) -> None:
        assert kinds == 8

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid in self.lost:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> Any:
        if not self.xids:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT)
        uuid, xid = self.xids.pop()
        return type("Event", (), {"device": uuid, "eventData": xid})

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 50

    def nvmlDeviceGetTemperatureThreshold(self, handle: str, which: int) -> int:
        return 90

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        if handle == "GPU-1":
            raise self.NVMLError(3)
        return 0

    def nvmlDeviceGetRetiredPagesPendingStatus(self, handle: str) -> int:
        return int(handle == "GPU-2")

    def nvmlDeviceGetRemappedRows(self, handle: str) -> tuple[int, int, int, int]:
        return (0, 0, 1, 0)


def test_the_source_asks_nvml() -> None:
    nvml, never = FakeNvml(), threading.Event()
    source = NvmlSource(nvml, GPUS, every_s=0.01)
    first = source.sample(never)
    assert {index: trouble.kind for index, trouble in first.items()} == {2: "memory"}
    nvml.lost.add("GPU-1")
    second = source.sample(never)
    assert {index: trouble.kind for index, trouble in second.items()} == {0: "xid", 1: "lost", 2: "memory"}
    assert "Xid 79" in second[0].reason
    source.close()
    assert nvml.open == 0


def test_the_source_uses_names_that_pynvml_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in used if not hasattr(pynvml, name)] == []
    assert pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT).value == pynvml.NVML_ERROR_TIMEOUT
