"""Coroutine methods with the parameters of the sync method whose future they await."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class Face(Protocol):
    """An object for asyncio, in front of one for threads that does the work."""

    @property
    def sync(self) -> Any:
        """The one for threads."""


P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", bound=Face)


def awaits(
    method: Callable[Concatenate[S, P], Future[T]], *, in_thread: bool = False
) -> Callable[
    [Callable[[F, Awaitable[T]], Coroutine[Any, Any, R]]], Callable[Concatenate[F, P], Coroutine[Any, Any, R]]
]:
    """Decorate a method that is given what ``method`` will have answered, and returns what it makes of that.

    It is called with the parameters of ``method``, and cancelling it cancels the future. ``in_thread``: ``method``
    itself may have to wait for the server, and so is called in a thread.
    """
    start: Callable[..., Awaitable[T]] = started_in_thread if in_thread else _started

    def decorate(
        finish: Callable[[F, Awaitable[T]], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate[F, P], Coroutine[Any, Any, R]]:
        @functools.wraps(finish)
        async def awaiting(self: F, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return await finish(self, start(method, self.sync, *args, **kwargs))

        parameters = list(inspect.signature(method).parameters.values())
        returned = inspect.signature(finish).return_annotation
        awaiting.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        return awaiting

    return decorate


def _started(method: Callable[..., Future[T]], /, *args: Any, **kwargs: Any) -> Awaitable[T]:
    return asyncio.wrap_future(method(*args, **kwargs))


async def started_in_thread(method: Callable[..., Future[T]], /, *args: Any, **kwargs: Any) -> T:
    """Await what ``method`` returns, a future, when ``method`` itself may wait for the server."""
    starting = asyncio.ensure_future(asyncio.to_thread(method, *args, **kwargs))
    try:
        future = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be stopped; what it starts is withdrawn as soon as it is there.
        starting.add_done_callback(lambda task: None if _failed(task) else task.result().cancel())
        raise
    return await asyncio.wrap_future(future)


def _failed(task: asyncio.Future[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
