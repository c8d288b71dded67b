"""What the agent's state machine tells its shell to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spoke.protocol.notice import Notice
from spoke.protocol.orders import StartActor
from spoke.protocol.requests import Envelope


@dataclass(frozen=True, slots=True)
class Send:
    """Append a request to the pool's stream, after those that wait already."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class DropUnsent:
    """Forget the requests that could not be sent yet: they are of an incarnation that is over, or sent again."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease now, and say what came of it."""

    incarnation: str
    lease_ms: int


@dataclass(frozen=True, slots=True)
class ExtendLease:
    """Tell the keeper until when actors may live."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Joined:
    """The node is in the pool."""


@dataclass(frozen=True, slots=True)
class LendPort:
    """Let go of a held port."""

    port: int


@dataclass(frozen=True, slots=True)
class HoldPort:
    """Hold a port again."""

    port: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start an actor's process; ``restarts``: how often it was started again before."""

    order: StartActor
    blob: bytes
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class SpawnHelper:
    """Run a command beside an actor, or after its end: the check of its health, or its exit hook.

    Its process is called ``<launch id>+<part>``. ``code``, ``signal`` and ``reason`` say how the actor ended.
    """

    order: StartActor
    blob: bytes
    part: Literal["health", "hook"]
    restarts: int = 0
    code: int = 0
    signal: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask an actor of a registered type whether it is healthy, and say what came of it, within ``timeout_s``."""

    launch_id: str
    address: str
    blob: bytes
    number: tuple[int, int]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class StopProcess:
    """SIGTERM to an actor's process group, SIGKILL to all that is left of it after ``grace_s``."""

    launch_id: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Notify:
    """Let running actors know that there is something to be told; ``notice`` is what is new, if anything is."""

    launch_ids: tuple[str, ...]
    notice: Notice | None = None


@dataclass(frozen=True, slots=True)
class KillAll:
    """SIGKILL every actor at once."""


@dataclass(frozen=True, slots=True)
class KillKeeper:
    """The keeper does not do its work: kill it, and everything below it."""


@dataclass(frozen=True, slots=True)
class Warn:
    """Log something that the node's operator should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Quit:
    """End the agent once everything is sent; with an ``error`` unless it is in order."""

    code: str = ""
    error: str = ""


Instruction = (
    Send
    | DropUnsent
    | Renew
    | ExtendLease
    | Joined
    | LendPort
    | HoldPort
    | Spawn
    | SpawnHelper
    | Probe
    | StopProcess
    | Notify
    | KillAll
    | KillKeeper
    | Warn
    | Quit
)
