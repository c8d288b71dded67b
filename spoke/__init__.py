"""Spoke: reserve GPUs for a gang of actors at once, start them, call them, and get everything back.

This module is the whole public interface. Its names are imported when they are first used, so that an actor's
process, which needs little of this, starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spoke.agent.actor import Actor as Actor
    from spoke.agent.actor import ActorContext as ActorContext
    from spoke.agent.actor import register_actor as register_actor
    from spoke.client.aio.client import AsyncClient as AsyncClient
    from spoke.client.aio.gang import AsyncGang as AsyncGang
    from spoke.client.aio.handle import AsyncActorHandle as AsyncActorHandle
    from spoke.client.futures import GangFuture as GangFuture
    from spoke.client.logs.lines import LogLine as LogLine
    from spoke.client.status import NodeStatus as NodeStatus
    from spoke.client.status import PoolStatus as PoolStatus
    from spoke.client.status import TicketStatus as TicketStatus
    from spoke.client.sync.client import Client as Client
    from spoke.client.sync.gang import Gang as Gang
    from spoke.client.sync.handle import ActorHandle as ActorHandle
    from spoke.client.tracking import ActorExit as ActorExit
    from spoke.errors import ActorError as ActorError
    from spoke.errors import ActorStartFailed as ActorStartFailed
    from spoke.errors import ActorUnreachable as ActorUnreachable
    from spoke.errors import AllocationCancelled as AllocationCancelled
    from spoke.errors import AllocationError as AllocationError
    from spoke.errors import AllocationTimeout as AllocationTimeout
    from spoke.errors import AlreadyLaunched as AlreadyLaunched
    from spoke.errors import AuthenticationFailed as AuthenticationFailed
    from spoke.errors import CallTimeout as CallTimeout
    from spoke.errors import ClientClosed as ClientClosed
    from spoke.errors import InvalidRequest as InvalidRequest
    from spoke.errors import LeaseLost as LeaseLost
    from spoke.errors import LimitExceeded as LimitExceeded
    from spoke.errors import LogsUnavailable as LogsUnavailable
    from spoke.errors import NoAllocator as NoAllocator
    from spoke.errors import NodeBusy as NodeBusy
    from spoke.errors import NotSerializable as NotSerializable
    from spoke.errors import ProtocolMismatch as ProtocolMismatch
    from spoke.errors import RankOutOfRange as RankOutOfRange
    from spoke.errors import RepairRefused as RepairRefused
    from spoke.errors import ServerError as ServerError
    from spoke.errors import ServerUnreachable as ServerUnreachable
    from spoke.errors import ServerUnsuitable as ServerUnsuitable
    from spoke.errors import SpokeError as SpokeError
    from spoke.errors import TicketEnded as TicketEnded
    from spoke.errors import TicketError as TicketError
    from spoke.errors import TransportUnavailable as TransportUnavailable
    from spoke.errors import UnknownNode as UnknownNode
    from spoke.errors import UnknownTicket as UnknownTicket
    from spoke.errors import WaitTimeout as WaitTimeout
    from spoke.events.model import Resources as Resources
    from spoke.events.model import Slot as Slot
    from spoke.events.rules import Group as Group
    from spoke.events.supervision import ExitHook as ExitHook
    from spoke.events.supervision import HealthCheck as HealthCheck
    from spoke.events.supervision import Restart as Restart
    from spoke.events.supervision import Supervision as Supervision
    from spoke.protocol.explanation import Explanation as Explanation
    from spoke.protocol.explanation import PendingReason as PendingReason
    from spoke.protocol.launch import Torchrun as Torchrun
    from spoke.protocol.notice import Notice as Notice
    from spoke.transport.carrier import Transport as Transport
    from spoke.transport.handles import BufferHandle as BufferHandle
    from spoke.transport.mailbox import Mailbox as Mailbox
    from spoke.transport.regions import Buffer as Buffer
    from spoke.transport.stream import Stream as Stream

    __version__: str

_HOMES = {
    "spoke.agent.actor": ("Actor", "ActorContext", "register_actor"),
    "spoke.client.aio.client": ("AsyncClient",),
    "spoke.client.aio.gang": ("AsyncGang",),
    "spoke.client.aio.handle": ("AsyncActorHandle",),
    "spoke.client.futures": ("GangFuture",),
    "spoke.client.sync.gang": ("Gang",),
    "spoke.client.sync.handle": ("ActorHandle",),
    "spoke.client.logs.lines": ("LogLine",),
    "spoke.client.status": ("NodeStatus", "PoolStatus", "TicketStatus"),
    "spoke.client.sync.client": ("Client",),
    "spoke.client.tracking": ("ActorExit",),
    "spoke.errors": (
        "ActorError",
        "ActorStartFailed",
        "ActorUnreachable",
        "AllocationCancelled",
        "AllocationError",
        "AllocationTimeout",
        "AlreadyLaunched",
        "AuthenticationFailed",
        "CallTimeout",
        "ClientClosed",
        "InvalidRequest",
        "LeaseLost",
        "LimitExceeded",
        "LogsUnavailable",
        "NoAllocator",
        "NodeBusy",
        "NotSerializable",
        "ProtocolMismatch",
        "RankOutOfRange",
        "RepairRefused",
        "ServerError",
        "ServerUnreachable",
        "ServerUnsuitable",
        "SpokeError",
        "TicketEnded",
        "TicketError",
        "TransportUnavailable",
        "UnknownNode",
        "UnknownTicket",
        "WaitTimeout",
    ),
    "spoke.events.model": ("Resources", "Slot"),
    "spoke.protocol.explanation": ("Explanation", "PendingReason"),
    "spoke.events.rules": ("Group",),
    "spoke.events.supervision": ("ExitHook", "HealthCheck", "Restart", "Supervision"),
    "spoke.protocol.launch": ("Torchrun",),
    "spoke.protocol.notice": ("Notice",),
    "spoke.transport.handles": ("BufferHandle",),
    "spoke.transport.mailbox": ("Mailbox",),
    "spoke.transport.regions": ("Buffer",),
    "spoke.transport.stream": ("Stream",),
    "spoke.transport.carrier": ("Transport",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF), "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from spoke.version import release_version

        value: Any = release_version()
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'spoke' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
