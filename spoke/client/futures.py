"""The futures that a client hands out. Cancelling one withdraws what it stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from spoke.errors import SpokeError
from spoke.protocol.explanation import PendingReason

if TYPE_CHECKING:
    from spoke.client.session import Session

T = TypeVar("T")
WHY_S_MAX = 0.5
ASK_WHY_FROM_S = 1.0
"""Who waits for less polls: its TimeoutError says what was known, and costs no request."""
FORKED = "this client belongs to the process that forked this one: open a client of its own here (spoke.Client(...))"


class Pending(Future[T]):
    """The future of one request or one wait. ``convert`` makes its value of what the session learns."""

    def __init__(
        self,
        session: Session,
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
        """The value; raises what it failed with, or TimeoutError after ``timeout`` seconds, which says why it waits."""
        self._session.check_process()
        try:
            return super().result(timeout)
        except TimeoutError:
            if timeout is None or self.done():  # it failed with a TimeoutError of its own, or at this very moment
                return super().result(0)
        raise TimeoutError(self._why_not_yet(timeout))

    def pending_reason(self, timeout: float = 5.0) -> PendingReason | None:
        """Why the gang that was asked for is not granted yet, as the allocator sees it now: ``str`` of it is a sentence
        and a table. None when it does not wait in line, or nobody answers within ``timeout`` seconds.
        """
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


class Chain(Future[T]):
    """The future of several requests in a row. Cancelling it cancels the one under way."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way: Future[Any] | None = None

    def pending_reason(self, timeout: float = 5.0) -> PendingReason | None:
        """Why the gang that was asked for is not granted yet; see ``Pending.pending_reason``."""
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


def _spent(*learned: Any) -> Any:
    raise AssertionError("a future is fulfilled once")


def failed(error: SpokeError) -> Future[Any]:
    """A future that has failed already."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
