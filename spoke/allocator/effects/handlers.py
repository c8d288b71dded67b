"""A table from event types to the functions that say what follows from them, filled in beside each function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, overload

from spoke.allocator.effects.kinds import Blobs, Effect
from spoke.events.state import PoolState
from spoke.events.types import Event, Recorded


class Cause(NamedTuple):
    """The event as it is recorded, and what came with its request for the actors alone."""

    recorded: Recorded
    blobs: Blobs


E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
Handler = Callable[[PoolState, E, Cause], Iterable[Effect]]
"""It is given the state before the event, and the event."""


class Handlers(dict[type[Event], Handler[Any]]):
    """The events of one subject."""

    @overload
    def of(self, kind: type[E], /) -> Callable[[Handler[E]], Handler[E]]: ...

    @overload
    def of(self, kind: type[E], other: type[E2], /) -> Callable[[Handler[E | E2]], Handler[E | E2]]: ...

    @overload
    def of(self, *kinds: type[Event]) -> Callable[[Handler[Any]], Handler[Any]]: ...

    def of(self, *kinds: type[Event]) -> Callable[[Handler[Any]], Handler[Any]]:
        """Decorate the function that has the effects of events of these types."""

        def enter(handler: Handler[Any]) -> Handler[Any]:
            self.update(dict.fromkeys(kinds, handler))
            return handler

        return enter
