"""The futures that a client hands out. Cancelling one withdraws what it stands for, and so does Ctrl-C in its wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import wait as wait_for
from typing import Any, Protocol, TypeVar

from spoke.client import progress
from spoke.errors import SpokeError
from spoke.protocol.explanation import PendingReason
from spoke.protocol.replies import Queued

T = TypeVar("T")
WHY_S_MAX = 0.5
ASK_WHY_EVERY_S = 5.0
ASK_WHY_FROM_S = 1.0
"""Who waits for less polls: its TimeoutError says what was known, and costs no request."""
FORKED = "this client belongs to the process that forked this one: open a client of its own here (spoke.Client(...))"


class GangFuture(Future[T]):
    """The future of a gang, or of the actor that ``spawn`` starts in one: it also says why it waits.

    Otherwise it is a ``concurrent.futures.Future``. Cancelling it withdraws the request.

    >>> future = client.gang_allocate(2, 1, spoke.Resources(gpus=1))
    >>> len(future.result(timeout=30))
    2
    """

    def pending_reason(self, timeout: float = 5.0) -> PendingReason | None:
        """Why the gang that was asked for is not granted yet, as the allocator sees it now: ``str`` of it is a sentence
        and a table. None when it does not wait in line, or nobody answers within ``timeout`` seconds.

        >>> print(waiting.pending_reason())
        t-... waits: it needs ...
        """
        return None


class Asked(Protocol):
    """The session, as far as its futures ask it."""

    def check_process(self) -> None:
        """Raise ClientClosed in a forked child."""

    def queued(self, future: Pending[Any]) -> Queued | None:
        """What is known of the gang that a future stands for, if it waits in line."""

    def explain(self, ticket_id: str) -> Pending[PendingReason]:
        """Ask why a ticket waits."""

    def withdraw(self, future: Pending[Any]) -> None:
        """The future was cancelled."""


class Pending(GangFuture[T]):
    """The future of one request or one wait. ``convert`` makes its value of what the session learns."""

    _asked_why_at = 0.0
    _known: PendingReason | None = None

    def __init__(
        self,
        session: Asked,
        convert: Callable[..., T],
        unwanted: Callable[[T], object] | None = None,
        *,
        is_wait: bool = False,
    ) -> None:
        super().__init__()
        self._session = session
        self._convert = convert
        self._unwanted = unwanted
        self.is_wait = is_wait
        self.number = 0

    def result(self, timeout: float | None = None) -> T:
        """The value; raises what it failed with, or TimeoutError after ``timeout`` seconds, which says why it waits.

        Ctrl-C raises KeyboardInterrupt at once and withdraws what was asked for, as ``cancel`` does; a wait for the end
        of actors stays. In a notebook and at a prompt a line says what is waited for (see SPOKE_PROGRESS).
        """
        self._session.check_process()
        try:
            return wait_and_show(self, super().result, timeout, self._what)
        except TimeoutError:
            if timeout is None or self.done():  # it failed with a TimeoutError of its own, or at this very moment
                return super().result(0)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        raise TimeoutError(self._why_not_yet(timeout))

    def _interrupted(self) -> None:
        if self.is_wait or self.cancel() or self._unwanted is None:
            return
        if not self.cancelled() and super().exception(0) is None:
            self._unwanted(super().result(0))  # it came at this very moment, and nobody will ever take it

    def _what(self) -> str:
        """What is waited for; asks the allocator for it now and then."""
        queued = self._session.queued(self)
        if queued is None:
            return "the actors run" if self.is_wait else "no answer yet"
        if time.monotonic() - self._asked_why_at >= ASK_WHY_EVERY_S:
            self._asked_why_at = time.monotonic()
            self._known = self.pending_reason(WHY_S_MAX)
        known = self._known
        if known is None:
            return f"{queued.ticket_id}: {queued.reason}"
        return f"{known.place} of {known.waiting} in line: {known.sentence}"

    def pending_reason(self, timeout: float = 5.0) -> PendingReason | None:
        """Why the gang that was asked for is not granted yet; see ``GangFuture.pending_reason``."""
        queued = self._session.queued(self)
        if queued is None or self.done():
            return None
        try:
            return self._session.explain(queued.ticket_id).exception_or_result(timeout)
        except (SpokeError, TimeoutError):  # granted or refused meanwhile, or nobody answers
            return None

    def exception_or_result(self, timeout: float) -> T:
        """The value, as ``result``, without asking why if it does not come."""
        return super().result(timeout)

    def __repr__(self) -> str:
        queued = None if self.done() else self._session.queued(self)
        return super().__repr__() if queued is None else f"<Pending {queued.ticket_id} in line: {queued.reason}>"

    def _why_not_yet(self, timeout: float) -> str:
        queued = self._session.queued(self)
        if queued is None:
            return f"no answer within {timeout:g} s: the request may still be answered"
        known = self.pending_reason(min(WHY_S_MAX, timeout)) if timeout >= ASK_WHY_FROM_S else None
        return f"not granted within {timeout:g} s: {known or queued.reason}"

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it failed with, or None; raises TimeoutError after ``timeout`` seconds."""
        self._session.check_process()
        return super().exception(timeout)

    def cancel(self) -> bool:
        """Stop waiting and withdraw the request: a gang granted meanwhile is given back. False if it is done."""
        if not super().cancel():
            return False
        self._session.withdraw(self)
        return True

    def fulfil(self, *learned: Any) -> None:
        """Set the value; one that nobody waits for any more is given back."""
        convert, self._convert = self._convert, _spent  # it may refer to the gang
        try:
            value = convert(*learned)
        except Exception as error:
            self.fail(error)
            return
        try:
            self.set_result(value)
        except InvalidStateError:  # cancelled at this very moment
            self.set_running_or_notify_cancel()
            if self._unwanted is not None:
                self._unwanted(value)

    def fail(self, error: BaseException) -> None:
        """Set the exception, unless it was cancelled at this very moment."""
        try:
            self.set_exception(error)
        except InvalidStateError:
            self.set_running_or_notify_cancel()


class Chain(GangFuture[T]):
    """The future of several requests in a row. Cancelling it cancels the one under way."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way: Future[Any] | None = None

    def result(self, timeout: float | None = None) -> T:
        """The value, as ``Pending.result``."""
        try:
            return wait_and_show(self, super().result, timeout, self._what)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _what(self) -> str:
        step = self._under_way
        return step._what() if isinstance(step, Pending) else "no answer yet"

    def pending_reason(self, timeout: float = 5.0) -> PendingReason | None:
        """Why the gang that was asked for is not granted yet; see ``GangFuture.pending_reason``."""
        step = self._under_way
        return step.pending_reason(timeout) if isinstance(step, Pending) else None

    def cancel(self) -> bool:
        """Stop the chain; False if it is done."""
        if not super().cancel():
            return False
        if self._under_way is not None:
            self._under_way.cancel()
        return True

    def follow(self, step: Future[Any], then: Callable[[Future[Any]], object]) -> None:
        """Make ``step`` the one under way, and call ``then`` with it when it is done."""
        self._under_way = step
        step.add_done_callback(then)
        if self.cancelled():
            step.cancel()

    def finish(self, value: T) -> bool:
        """Set the value; False if the chain was cancelled."""
        self._under_way = None  # its callbacks refer to the chain: a cycle would keep the value alive
        try:
            self.set_result(value)
        except InvalidStateError:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """Set the exception, unless the chain was cancelled."""
        self._under_way = None
        if not self.done():
            with contextlib.suppress(InvalidStateError):
                self.set_exception(error)


def wait_and_show(
    future: Future[T], take: Callable[[float | None], T], timeout: float | None, what: Callable[[], str]
) -> T:
    """What ``take`` gives, which is the future's own ``result``; after a moment with a line, where a person looks."""
    first = progress.AFTER_S if timeout is None or timeout > progress.AFTER_S else timeout
    try:
        return take(first)
    except TimeoutError:
        if first == timeout or future.done():
            raise
    rest = None if timeout is None else timeout - first
    line = progress.find_line()
    if line is not None:
        rest = progress.watch(lambda pause: bool(wait_for([future], pause).done), what, line, rest)
    return take(rest)


def _spent(*learned: Any) -> Any:
    raise AssertionError("a future is fulfilled once")


def failed(error: SpokeError) -> GangFuture[Any]:
    """A future that has failed already."""
    future: GangFuture[Any] = GangFuture()
    future.set_exception(error)
    return future
