"""A table from event types to the functions that fold them, filled in beside each function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from spoke.events.state import PoolState
from spoke.events.types import Event

E = TypeVar("E", bound=Event)
E2 = TypeVar("E2", bound=Event)
Handler = Callable[[PoolState, str, E], None]
"""It is given the state, the event's id and the event."""


class Handlers(dict[type[Event], Handler[Any]]):
    """The events of one subject."""

    @overload
    def of(self, kind: type[E], /) -> Callable[[Handler[E]], Handler[E]]: ...

    @overload
    def of(self, kind: type[E], other: type[E2], /) -> Callable[[Handler[E | E2]], Handler[E | E2]]: ...

    def of(self, *kinds: type[Event]) -> Callable[[Handler[Any]], Handler[Any]]:
        """Decorate the function that folds events of these types."""

        def enter(handler: Handler[Any]) -> Handler[Any]:
            self.update(dict.fromkeys(kinds, handler))
            return handler

        return enter
