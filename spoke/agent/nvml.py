"""The health of GPUs, as NVML shows it: temperature, ECC errors, retired memory, Xid errors, a GPU off the bus.

``Judge`` turns samples of one GPU into a verdict, and needs no hardware; ``NvmlSource`` takes the samples. What a reset
or a new driver must heal (an Xid error, a lost GPU) is remembered as long as the agent lives.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spoke.agent.health import Health, Trouble
from spoke.events.model import Gpu

EVERY_S = 10.0
WAIT_MS = 500
HOT_SAMPLES = 3
COOL_BY = 5
BENIGN_XIDS = frozenset({13, 31, 43, 45, 63, 68, 92, 94, 109})
"""Xid errors that programs cause, or that tell of an error which was contained or repaired: the GPU itself is sound."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a GPU; what it cannot say is None. ``limit`` is where it slows down; both are in degrees Celsius."""

    lost: str = ""
    temperature: int | None = None
    limit: int | None = None
    uncorrected_ecc: int | None = None
    pages_pending: bool = False
    remap_failed: bool = False
    xids: tuple[int, ...] = ()


@dataclass(slots=True)
class Judge:
    """What the samples of one GPU say of it."""

    hot: bool = False
    _runs: int = 0
    _lasting: Trouble | None = field(default=None)

    def see(self, sample: Sample) -> Trouble | None:
        """Take in a sample; what is wrong, if anything is."""
        if sample.lost:
            self._lasting = Trouble("lost", f"the GPU does not answer: {sample.lost}")
        bad = [xid for xid in sample.xids if xid not in BENIGN_XIDS]
        if bad and self._lasting is None:
            self._lasting = Trouble("xid", f"the driver reported Xid {', '.join(map(str, bad))}")
        self._see_temperature(sample)
        if self._lasting is not None:
            return self._lasting
        if sample.remap_failed:
            return Trouble("memory", "a bad row of its memory could not be remapped: it must be replaced")
        if sample.pages_pending:
            return Trouble("memory", "bad pages of its memory wait to be retired: reset the GPU")
        if sample.uncorrected_ecc:
            return Trouble("ecc", f"{sample.uncorrected_ecc} uncorrected ECC errors since the driver was loaded")
        if self.hot:
            return Trouble(
                "temperature", f"{sample.temperature} degrees Celsius, where it slows down at {sample.limit}"
            )
        return None

    def _see_temperature(self, sample: Sample) -> None:
        """Hot after some samples in a row at the limit, cool after as many well below it."""
        if sample.temperature is None or not sample.limit:
            return
        turning = sample.temperature <= sample.limit - COOL_BY if self.hot else sample.temperature >= sample.limit
        self._runs = self._runs + 1 if turning else 0
        if self._runs >= HOT_SAMPLES:
            self.hot, self._runs = not self.hot, 0


class NvmlSource:
    """Samples the GPUs every EVERY_S seconds, and at once when the driver reports an Xid error."""

    def __init__(self, nvml: Any, gpus: Sequence[Gpu], every_s: float = EVERY_S) -> None:
        self._nvml, self._every_s, self._first = nvml, every_s, True
        self._judges = {gpu.index: Judge() for gpu in gpus}
        self._uuids = {gpu.index: gpu.uuid for gpu in gpus}
        nvml.nvmlInit()
        self._events = None
        with contextlib.suppress(nvml.NVMLError):  # some drivers and containers have no events
            self._events = nvml.nvmlEventSetCreate()
            for uuid in self._uuids.values():
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)

    def close(self) -> None:
        """Let go of NVML."""
        with contextlib.suppress(self._nvml.NVMLError):
            if self._events is not None:
                self._nvml.nvmlEventSetFree(self._events)
            self._nvml.nvmlShutdown()

    def sample(self, stopping: threading.Event) -> Health:
        """See ``Source``."""
        xids = {} if self._first else self._wait(stopping)
        self._first = False
        found = {}
        for index, judge in self._judges.items():
            trouble = judge.see(self._look(index, tuple(xids.get(index, ()))))
            if trouble is not None:
                found[index] = trouble
        return found

    def _wait(self, stopping: threading.Event) -> dict[int, list[int]]:
        """The Xid errors that come before the next sample is due; the first one ends the wait."""
        deadline_s = time.monotonic() + self._every_s
        while not stopping.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            if self._events is None:
                stopping.wait(left_s)
                continue
            nvml = self._nvml
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, max(1, min(WAIT_MS, int(left_s * 1000))))
                uuid = nvml.nvmlDeviceGetUUID(event.device)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_TIMEOUT:
                    stopping.wait(min(1.0, left_s))  # a GPU that is lost makes the wait fail: the samples tell which
                continue
            name = uuid.decode() if isinstance(uuid, bytes) else uuid
            for index, known in self._uuids.items():
                if known == name:
                    return {index: [int(event.eventData)]}
        return {}

    def _look(self, index: int, xids: tuple[int, ...]) -> Sample:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(self._uuids[index])
            temperature = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        except nvml.NVMLError as error:
            gone = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_RESET_REQUIRED)
            if error.value in gone:
                return Sample(lost=str(error), xids=xids)
            return Sample(xids=xids)
        limit = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        ecc = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        pending = self._ask(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        remapped = self._ask(nvml.nvmlDeviceGetRemappedRows, handle)
        return Sample(
            temperature=temperature,
            limit=limit,
            uncorrected_ecc=ecc,
            pages_pending=bool(pending),
            remap_failed=bool(remapped and remapped[3]),
            xids=xids,
        )

    def _ask(self, question: Any, *args: Any) -> Any:
        """An answer, or None from a GPU that has none."""
        try:
            return question(*args)
        except self._nvml.NVMLError:
            return None
