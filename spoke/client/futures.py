"""The futures that a client hands out. Cancelling one withdraws what it stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from spoke.errors import SpokeError

if TYPE_CHECKING:
    from spoke.client.session import Session

T = TypeVar("T")
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
        """The value; raises what it failed with, or TimeoutError after ``timeout`` seconds."""
        self._session.check_process()
        return super().result(timeout)

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
