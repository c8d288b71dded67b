"""The agent's spans, for launches that carry a span's context: from the order (or restart) until the actor is up.

Within it a span of its own lasts from the start of the actor's process until it is ready: what a slow import takes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from spoke.agent import instructions as i
from spoke.events.codec import DecodeError
from spoke.protocol import requests as r
from spoke.protocol.launch import decode_blob
from spoke.protocol.tracing import VARIABLE, Tracing, Value, is_traceparent, traceparent

OPEN_MAX: Final = 10_000


@dataclass(slots=True)
class _Start:
    """A start that goes on: its span, and (once there is a process) that of the process."""

    whole: Any
    attributes: dict[str, Value]
    process: Any = None


class AgentTracing:
    """One agent's spans; a ``Watcher``."""

    def __init__(self, tracing: Tracing, pool: str, node_id: str) -> None:
        self._tracing = tracing
        self._common = {"spoke.pool": pool, "spoke.node_id": node_id}
        self._starting: OrderedDict[str, _Start] = OrderedDict()

    def watch(self, step: i.Instruction) -> None:
        """Take note of a start, and of what became of it."""
        match step:
            case i.Spawn():
                self._begin(step)
            case i.Send(envelope):
                self._reported(envelope.request)
            case i.KillAll():
                for launch_id in list(self._starting):
                    self._end(launch_id, "all actors were killed: the lease was not sure any more")

    def spawned(self, launch_id: str) -> None:
        """A launch's process is started now."""
        start = self._starting.get(launch_id)
        if start is not None:
            parent = traceparent(start.whole)
            start.process = self._tracing.start("spoke.actor.start", parent=parent, attributes=start.attributes)

    def _begin(self, step: i.Spawn) -> None:
        order = step.order
        try:
            parent = decode_blob(step.blob).env.get(VARIABLE, "") if step.blob else ""
        except DecodeError:  # the launch fails for that, and says so
            return
        if not is_traceparent(parent):
            return
        attributes: dict[str, Value] = {
            **self._common,
            "spoke.ticket_id": order.ticket_id,
            "spoke.rank": order.rank,
            "spoke.actor_id": order.actor_id,
            "spoke.runs": order.spec.title[:200],
            "spoke.launch_id": order.launch_id,
            "spoke.restarts": step.restarts,
        }
        span = self._tracing.start("spoke.agent.launch", parent=parent, kind="server", attributes=attributes)
        self._starting[order.launch_id] = _Start(span, attributes)
        while len(self._starting) > OPEN_MAX:
            self._starting.popitem(last=False)

    def _reported(self, report: r.Request) -> None:
        match report:
            case r.ReportStarted(launch_id=launch_id, pid=pid, address=address) if launch_id in self._starting:
                process = self._starting[launch_id].process
                if process is not None:
                    process.set_attributes({"spoke.pid": pid, "spoke.address": address})
                self._end(launch_id)
            case r.ReportStartFailed(launch_id=launch_id, reason=reason) if launch_id in self._starting:
                self._end(launch_id, reason)
            case r.ReportExited(launch_id=launch_id) if launch_id in self._starting:
                self._end(launch_id, "it ended before it was up")
            case r.ReportRestarting(launch_id=launch_id, reason=reason) if launch_id in self._starting:
                self._end(launch_id, reason or "it ended before it was up, and is started again")
            case r.ReportHalted(launch_id=launch_id) if launch_id in self._starting:
                self._end(launch_id, "it was stopped for a restart of its gang")

    def _end(self, launch_id: str, problem: str = "") -> None:
        start = self._starting.pop(launch_id)
        for span in filter(None, (start.process, start.whole)):
            if problem:
                self._tracing.fail(span, "start_failed")
                span.add_event("start failed", {"spoke.reason": problem[:500]})
            span.end()
