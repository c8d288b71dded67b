"""One launch on a node, through all its processes: the actor's own, again and again if its restart policy says so, the
checks of its health, and what is run at its end. Pure, like the machine that holds it.

What happens goes in, steps come out: instructions for the shell, and reports for the pool. Stages: starting (its
process runs and has not said that it is up) -> up -> ending (its process is gone, a check of its health is not) -> hook
-> one of: over; waiting (to be started again); parked (a member of a gang that may be started again as a whole).

Whatever happens, each of the launch's *turns* (from a start to the next, or to the end) leads to exactly one report of
how it ended: it is over, it is halted, or it will be started again.
"""

from __future__ import annotations

from typing import Literal

from spoke.agent import instructions as i
from spoke.events.supervision import NONE
from spoke.protocol import orders as o
from spoke.protocol import requests as r

Stage = Literal["starting", "up", "ending", "hook", "waiting", "parked", "over"]
Step = i.Instruction | r.Request
HUNG_GRACE_S = 5.0
"""What a process that hangs has at most to leave a trace of where."""
ANSWER_MORE_S = 2.0
"""How much longer than its own time limit a check may take before it counts as failed."""


def main_of(process_id: str) -> tuple[str, str]:
    """The launch of a process, and which of its processes it is: "" is the actor's own."""
    launch_id, _, part = process_id.partition("+")
    return launch_id, part


class Life:
    """See the module. ``restarts`` counts the launch's turns from 0 on; in a gang it is the gang's generation."""

    def __init__(self, order: o.StartActor, blob: bytes, start_limit_s: float) -> None:
        self.order = order
        self.stage: Stage = "starting"
        self.restarts = 0
        self.stopping = False
        self.reported_end = False
        """Whether the pool was told that this turn, and with it the launch, is over."""
        self._blob = blob
        self._care = order.spec.supervision or NONE
        self._policy = self._care.restart.policy if self._care.restart is not None else ""
        limit_s = self._care.start_timeout_s or start_limit_s
        self._start_limit_s = limit_s if not order.spec.argv or self._care.health is not None else None
        self._strikes = 0
        self._hook_allowed = True
        self._may_restart = True
        self._halting = False
        self._helper = ""
        self._main = False

    # --- what is known -----------------------------------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        """Whether anything of it may be alive."""
        return self._main or bool(self._helper)

    @property
    def is_up(self) -> bool:
        """Whether the actor is up."""
        return self.stage == "up"

    @property
    def may_be_resumed(self) -> bool:
        """Whether a restart of its gang may start it again, though its own end was reported."""
        return self.stage == "parked" and self.reported_end

    def wake_at_s(self) -> float | None:
        """When ``tick`` must be called; None if only something that happens can change anything."""
        match self.stage:
            case "starting" | "up":
                times = (self._limit_s, self._probe_at_s, None if self._overdue else self._probe_until_s)
                return min((at_s for at_s in times if at_s is not None), default=None)
            case "waiting" | "hook":
                return self._limit_s
        return None

    # --- starting ----------------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Step]:
        """Start its process."""
        self.stage = "starting"
        self._main, self._was_up, self._pid = True, False, 0
        self._failure, self._said, self._tail, self._exit = "", "", "", (0, 0)
        self._up_since_s = self._ended_s = now_s
        self._limit_s = None if self._start_limit_s is None else now_s + self._start_limit_s
        self._probe_at_s: float | None = None
        self._probe_until_s: float | None = None
        self._probe, self._missed, self._overdue = 0, 0, False
        return [i.Spawn(self.order, self._blob, self.restarts)]

    def started(self, pid: int, address: str, now_s: float) -> list[Step]:
        """Its process says that it is up; a command's was started."""
        if self.stage != "starting" or self.stopping or self._failure or self._halting:
            return []
        self._pid, self._address = pid, address
        health = self._care.health
        if health is not None:
            self._probe_at_s = now_s + health.interval_s
            if self.order.spec.argv:  # up when it is healthy for the first time
                return []
        return self._came_up(now_s)

    def _came_up(self, now_s: float) -> list[Step]:
        self.stage, self._was_up, self._up_since_s, self._limit_s = "up", True, now_s, None
        order = self.order
        return [
            r.ReportStarted(order.ticket_id, order.rank, order.launch_id, self._pid, self._address, self.restarts),
        ]

    def failed(self, reason: str, *, for_good: bool = False) -> list[Step]:
        """It says why it will not come up; its end follows. ``for_good``: and another start would not help."""
        if self.stage != "starting" or self._failure:
            return []
        self._failure, self._limit_s = reason, None
        self._may_restart = not for_good
        return [i.StopProcess(self.order.launch_id, min(1.0, self.order.grace_s))]

    def explained(self, reason: str) -> None:
        """It left word of why it ends."""
        self._said = reason

    # --- health ------------------------------------------------------------------------------------------------------

    def _ask(self, now_s: float) -> list[Step]:
        health = self._care.health
        if health is None or self._helper:
            return []
        self._probe += 1
        self._probe_at_s, self._probe_until_s, self._overdue = None, now_s + health.timeout_s, False
        if self.order.spec.argv:
            self._helper = "health"
            return [i.SpawnHelper(self.order, self._blob, "health", self.restarts)]
        self._probe_until_s += ANSWER_MORE_S
        return [i.Probe(self.order.launch_id, self._address, self._blob, self._number(), health.timeout_s)]

    def _number(self) -> tuple[int, int]:
        return self.restarts, self._probe

    def probed(self, number: tuple[int, int], trouble: str, now_s: float) -> list[Step]:
        """A check of its health has ended: with what is wrong, or without."""
        if number != self._number() or self._probe_until_s is None:
            return []
        health = self._care.health
        if health is None or self.stage not in ("starting", "up") or self.stopping or self._failure or self._halting:
            return []
        self._probe_until_s, self._probe_at_s = None, now_s + health.interval_s
        if not trouble:
            self._missed = 0
            return self._came_up(now_s) if self.stage == "starting" else []
        if self.stage == "starting":
            return []
        self._missed += 1
        if self._missed < health.failures:
            return [i.Warn(f"{self._whose} does not seem healthy ({self._missed}): {trouble}")]
        times = "its health check" if self._missed == 1 else f"{self._missed} health checks in a row"
        self._failure = f"{times} failed: {trouble}"
        self._probe_at_s = None
        warning = i.Warn(f"{self._whose} is killed: {self._failure}")
        return [warning, i.StopProcess(self.order.launch_id, min(HUNG_GRACE_S, self.order.grace_s))]

    @property
    def _whose(self) -> str:
        return f"rank {self.order.rank} of ticket {self.order.ticket_id} ({self.order.actor_id})"

    # --- ending ------------------------------------------------------------------------------------------------------

    def ended(self, part: str, code: int, signal: int, tail: str, now_s: float) -> list[Step]:
        """Nothing of one of its processes is alive. ``tail``: the end of its log if it never said anything."""
        if part:
            return self._helper_ended(part, code, signal, now_s)
        if not self._main:
            return []
        self._main, self._exit, self._tail, self._ended_s = False, (code, signal), tail, now_s
        self.stage, self._limit_s = "ending", None
        if self._helper:
            return [i.StopProcess(f"{self.order.launch_id}+{self._helper}", 0.0)]
        return self._settled(now_s)

    def _helper_ended(self, part: str, code: int, signal: int, now_s: float) -> list[Step]:
        if part != self._helper:
            return []
        self._helper = ""
        if self.stage == "hook":
            how = f"was ended by signal {signal}" if signal else f"exited with code {code}"
            warnings: list[Step] = [i.Warn(f"the exit hook of {self._whose} {how}")] if code or signal else []
            return [*warnings, *self._conclude(now_s)]
        if self.stage == "ending":
            return self._settled(now_s)
        trouble = ""
        if code or signal:
            trouble = f"it was ended by signal {signal}" if signal else f"it exited with code {code}"
            if self._overdue:
                trouble = "it took too long"
        return self.probed(self._number(), trouble, now_s)

    def _settled(self, now_s: float) -> list[Step]:
        hook = self._care.exit_hook
        if hook is None or not self._hook_allowed:
            return self._conclude(now_s)
        self.stage, self._helper, self._limit_s = "hook", "hook", now_s + hook.timeout_s
        code, signal = self._exit
        return [i.SpawnHelper(self.order, self._blob, "hook", self.restarts, code, signal, self._why())]

    def _conclude(self, now_s: float) -> list[Step]:
        """All of this turn is over."""
        if self._halting and not self.stopping:
            return self._halted()
        code, signal = self._exit
        failed = not self._was_up or bool(code or signal or self._failure)
        again = self._again(now_s) if failed and not self.stopping and self._may_restart else []
        if again:
            return again
        resumable = self._policy == "gang" and not self.stopping and self._may_restart
        return self._end("parked" if resumable else "over")

    def _end(self, stage: Stage) -> list[Step]:
        self.stage, self.reported_end = stage, True
        order, (code, signal) = self.order, self._exit
        whose = (order.ticket_id, order.rank, order.launch_id)
        if self._was_up:
            return [r.ReportExited(*whose, code, signal, self._why(), self.restarts)]
        return [r.ReportStartFailed(*whose, self._why(), self.restarts)]

    def _why(self) -> str:
        """Why it ended, where neither code nor signal says it."""
        if self._failure or self._was_up:
            return self._failure or (self._said if any(self._exit) else "")
        if self.stopping:
            return "it was told to stop before it was up"
        code, signal = self._exit
        how = f"was ended by signal {signal}" if signal else f"exited with code {code}"
        return f"its process {how} before it was up" + (f"; its log ends:\n{self._tail}" if self._tail else "")

    def _again(self, now_s: float) -> list[Step]:
        restart = self._care.restart
        if restart is None or restart.policy != "on_failure":
            return []
        if self._was_up and restart.window_s and self._ended_s - self._up_since_s >= restart.window_s:
            self._strikes = 0
        if self._strikes >= restart.max_restarts:
            return []
        self._strikes += 1
        self.restarts += 1
        order, (code, signal) = self.order, self._exit
        delay_s = restart.delay_s(self._strikes, order.launch_id)
        self.stage, self._limit_s = "waiting", now_s + delay_s
        reason = self._why()
        return [
            r.ReportRestarting(
                order.ticket_id,
                order.rank,
                order.launch_id,
                self.restarts,
                code,
                signal,
                reason,
                round(delay_s * 1000),
            )
        ]

    # --- orders ------------------------------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> list[Step]:
        """End it for good: SIGTERM, SIGKILL after the grace. An exit hook has its own time."""
        self.stopping = True
        if self.stage in ("waiting", "parked"):
            return self._end("over") if not self.reported_end else []
        if self.stage not in ("starting", "up"):
            return []
        self._limit_s = self._probe_at_s = None
        return [i.StopProcess(self.order.launch_id, grace_s)]

    def kill(self) -> list[Step]:
        """End all of it at once."""
        self._hook_allowed = False
        steps = self.stop(0.0)
        if self._helper:
            steps.append(i.StopProcess(f"{self.order.launch_id}+{self._helper}", 0.0))
        return steps

    def halt(self, generation: int, grace_s: float) -> list[Step]:
        """Stop, since all of the gang is stopped; and wait for the others."""
        if self.stopping or self._policy != "gang":
            return []
        if generation <= self.restarts:  # told before: what was answered may be lost
            return self._halted() if self._halting and self.stage == "parked" else []
        self.restarts, self._halting, self.reported_end = generation, True, False
        if self.stage in ("waiting", "parked"):
            return self._halted()
        if self.stage not in ("starting", "up"):
            return []
        self._limit_s = self._probe_at_s = None
        return [i.StopProcess(self.order.launch_id, grace_s)]

    def _halted(self) -> list[Step]:
        self.stage = "parked"
        order, (code, signal) = self.order, self._exit
        return [r.ReportHalted(order.ticket_id, order.rank, order.launch_id, self.restarts, code, signal)]

    def resume(self, generation: int, delay_s: float, now_s: float) -> list[Step]:
        """All members are halted: start again."""
        if self.stage == "parked" and self._halting and generation == self.restarts:
            self._halting, self.stage, self._limit_s = False, "waiting", now_s + delay_s
        return []

    # --- time, and the end of everything -----------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Step]:
        """Time has passed."""
        due = self._limit_s is not None and now_s >= self._limit_s if self.stage != "parked" else False
        match self.stage:
            case "waiting" if due:
                return self.begin(now_s)
            case "hook" if due:
                self._limit_s = None
                took = self._care.exit_hook.timeout_s if self._care.exit_hook is not None else 0.0
                warning = i.Warn(f"the exit hook of {self._whose} is killed: it took longer than {took:g} s")
                return [warning, i.StopProcess(f"{self.order.launch_id}+hook", 0.0)]
            case "starting" if due:
                return self.failed(f"it was not up within the time limit of {self._start_limit_s:g} s")
            case "starting" | "up" if not (self.stopping or self._failure or self._halting):
                return self._check_health(now_s)
            case "starting" | "up":
                self._probe_at_s = self._probe_until_s = None
        return []

    def _check_health(self, now_s: float) -> list[Step]:
        if self._probe_until_s is not None and now_s >= self._probe_until_s:
            if self._overdue:
                return []
            if self._helper:  # what its end says counts
                self._overdue = True
                return [i.StopProcess(f"{self.order.launch_id}+{self._helper}", 0.0)]
            return self.probed(self._number(), "nobody answered", now_s)
        if self._probe_at_s is not None and now_s >= self._probe_at_s:
            return self._ask(now_s)
        return []

    def keeper_lost(self, now_s: float) -> list[Step]:
        """Everything below the keeper was killed, and a new one is there."""
        self._helper = ""
        if self._main:
            return self.ended("", -1, 9, "", now_s)
        if self.stage == "ending":
            return self._settled(now_s)
        return self._conclude(now_s) if self.stage == "hook" else []

    def buried(self, part: str) -> None:
        """One of its processes is gone while everything is being killed: nothing follows from it."""
        if part:
            self._helper = ""
        else:
            self._main = False
