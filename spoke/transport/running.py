"""Running what was called, and answering: plain methods in the thread that comes with them, async ones on the loop.

A stream is run item by item. A plain generator that is out of credit is left as it stands, and any worker goes on with
it later, so that a slow consumer holds no thread; an async one awaits its credit.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

from spoke.errors import ActorError, LimitExceeded, SpokeError
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Kind
from spoke.transport.job import CALLER, Caller, Job, StreamJob
from spoke.transport.loop import LoopThread
from spoke.transport.messages import pack_error, remote_error
from spoke.transport.values import pack_apart

log = logging.getLogger("spoke.actor")

_END: Final = object()


class _Unsendable(Exception):
    """An item of a stream cannot be sent; ``reason`` says why."""

    def __init__(self, reason: SpokeError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Runner:
    """Runs jobs for a server. ``settle`` takes one off the outstanding ones, and says whether it was still there."""

    def __init__(self, lock: threading.Lock, settle: Callable[[Caller, int], Job | None]) -> None:
        self._lock = lock
        self._settle = settle
        self._loop: LoopThread | None = None
        self._closing = False
        self._parked: set[StreamJob] = set()

    def close(self, timeout_s: float) -> None:
        """Cancel what runs on the loop, and close the generators that wait for credit."""
        with self._lock:
            self._closing = True
            loop, parked = self._loop, list(self._parked)
            self._parked.clear()
        closer = None
        if parked:
            closer = threading.Thread(target=_close_all, args=(parked,), name="spoke-closer", daemon=True)
            closer.start()
        if loop is not None:
            loop.close(timeout_s)
        if closer is not None:
            closer.join(timeout_s)

    # Plain methods: in the calling thread.

    def execute(self, job: Job) -> None:
        """Run a plain job, or the next part of a stream."""
        CALLER.set(job.caller)
        if isinstance(job, StreamJob):
            self._execute_stream(job)
            return
        if job.cancelled:
            return
        try:
            result = job.function(*job.args, **job.kwargs)
        except BaseException as error:
            self.answer_error(job, error, may_wait=True)
            return
        if inspect.iscoroutine(result):  # a plain function that hands one on, such as a decorator's
            self.start_async(job, lambda: result)
            return
        self.answer(job, result, may_wait=True)

    def _execute_stream(self, job: StreamJob) -> None:
        try:
            if job.iterator is None:
                if job.cancelled:
                    return
                result = job.function(*job.args, **job.kwargs)
                if inspect.iscoroutine(result) or isinstance(result, AsyncIterator):
                    self.start_async(job, lambda: result)
                    return
                job.iterator = _checked_iterator(job, result)
            while not self._must_park(job):
                if job.cancelled:
                    close_quietly(job)
                    return
                item = next(job.iterator)
                if not job.cancelled:
                    self._send_item(job, item, may_wait=True)
        except StopIteration as end:
            self.answer(job, end.value, may_wait=True)
        except BaseException as error:
            self.answer_error(job, error, may_wait=True)
            close_quietly(job)

    def _must_park(self, job: StreamJob) -> bool:
        with self._lock:
            if job.credit.has_room or job.cancelled:
                self._parked.discard(job)
                return False
            if self._closing:
                job.cancelled = True
                return False
            self._parked.add(job)
            job.parked = True
            return True

    # Async methods: on the loop.

    def start_async(self, job: Job, make: Callable[[], Any]) -> None:
        """Start a coroutine or an async generator, in the order of these calls."""
        with self._lock:
            if self._closing:
                return
            if self._loop is None:
                self._loop = LoopThread()
            loop = self._loop
        work = self._run_async_stream(job, make) if isinstance(job, StreamJob) else self._run_async(job, make)
        job.task_canceller = loop.submit(work)
        if job.cancelled:
            job.task_canceller()

    async def _run_async(self, job: Job, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        CALLER.set(job.caller)
        try:
            work = make()
            if hasattr(work, "__anext__"):
                self.fail(job, _must_be_streamed(job))
                return
            if job.cancelled:
                work.close()
                return
            result = await work
        except BaseException as error:
            self.answer_error(job, error, may_wait=False)
        else:
            self.answer(job, result, may_wait=False)

    async def _run_async_stream(self, job: StreamJob, make: Callable[[], Any]) -> None:
        import asyncio

        CALLER.set(job.caller)
        loop, granted = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(granted.set)

        found: Any = None
        try:
            found = make()
            if inspect.iscoroutine(found):
                if job.cancelled:
                    found.close()
                    return
                found = await found
            job.wake = wake
            if not isinstance(found, AsyncIterator):
                found = _in_async(_checked_iterator(job, found))
            while not job.cancelled:
                with self._lock:
                    has_room = job.credit.has_room
                    if not has_room:
                        granted.clear()
                if not has_room:
                    await granted.wait()
                    continue
                item = await anext(found, _END)
                if item is _END:
                    self.answer(job, None, may_wait=False)
                    return
                self._send_item(job, item, may_wait=False)
        except BaseException as error:
            self.answer_error(job, error, may_wait=False)
        finally:
            job.wake = None
            if hasattr(found, "aclose"):
                try:
                    await found.aclose()
                except BaseException:
                    log.exception("closing the stream %s", job.name)

    # Answers.

    def _send_item(self, job: StreamJob, item: object, *, may_wait: bool) -> None:
        """Send one item; raises NotSerializable or LimitExceeded, which ends the stream."""
        try:
            header, buffers = pack_apart(item, f"an item of {job.name}")
        except SpokeError as error:
            raise _Unsendable(error) from error
        nbytes = len(header) + sum(map(len, buffers))
        with self._lock:
            job.credit.sent(nbytes)
        try:
            job.caller.endpoint.send(Kind.ITEM, job.call_id, header, buffers, may_wait=may_wait, must=True)
        except EndpointClosed:
            job.cancelled = True
            job.caller.endpoint.shutdown()
        except SpokeError as error:
            raise _Unsendable(error) from error

    def answer(self, job: Job, result: object, *, may_wait: bool) -> None:
        """Send the result, unless nobody waits for it."""
        if self._settle(job.caller, job.call_id) is None:
            return
        if job.kind is Kind.TELL:
            if isinstance(result, Iterator | AsyncIterator):
                log.error("%s was told, but it yields: nothing of it has run; use stream", job.name)
            return
        try:
            header, buffers = pack_apart(result, f"the result of {job.name}")
            job.caller.endpoint.send(Kind.RESULT, job.call_id, header, buffers, may_wait=may_wait, must=True)
        except EndpointClosed:
            job.caller.endpoint.shutdown()
        except SpokeError as error:
            yields = isinstance(result, Iterator | AsyncIterator)
            self.send_error(job.caller, job.call_id, _must_be_streamed(job) if yields else error)
        except Exception as error:
            self.send_error(job.caller, job.call_id, remote_error(f"sending the result of {job.name}", error))

    def answer_error(self, job: Job, error: BaseException, *, may_wait: bool) -> None:
        """Send what a method raised, or log it where nobody waits."""
        if self._settle(job.caller, job.call_id) is None:
            return
        if isinstance(error, _Unsendable):
            self._report(job, error.reason, may_wait=may_wait)
            return
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # not our own line
        self._report(job, remote_error(job.name, error), may_wait=may_wait)

    def fail(self, job: Job, error: SpokeError) -> None:
        """Send an error as it is, unless nobody waits."""
        if self._settle(job.caller, job.call_id) is not None:
            self._report(job, error, may_wait=False)

    def _report(self, job: Job, error: SpokeError, *, may_wait: bool) -> None:
        if job.kind is Kind.TELL:
            log.error("%s, which %s told and waits for no answer: %s", job.name, job.caller.endpoint.peer, error)
        else:
            self.send_error(job.caller, job.call_id, error, may_wait=may_wait)

    def send_error(self, caller: Caller, call_id: int, error: SpokeError, *, may_wait: bool = False) -> None:
        """Send an error as it is."""
        try:
            caller.endpoint.send(Kind.ERROR, call_id, pack_error(error), (), may_wait=may_wait, must=True)
        except (EndpointClosed, LimitExceeded):
            caller.endpoint.shutdown()


def _must_be_streamed(job: Job) -> ActorError:
    error = ActorError(f"{job.name} yields its results: use stream instead of call")
    error.remote_type = "TypeError"
    return error


def _checked_iterator(job: Job, result: Any) -> Iterator[Any]:
    if not isinstance(result, Iterator):
        raise TypeError(f"{job.name} returned {type(result).__name__}, which cannot be streamed: use call, or yield")
    return result


async def _in_async(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    for item in iterator:
        yield item


def close_quietly(job: StreamJob) -> None:
    """Close a plain generator, so that its ``finally`` runs; what that raises is logged."""
    close = getattr(job.iterator, "close", None)
    if close is not None:
        try:
            close()
        except BaseException:
            log.exception("closing the stream %s", job.name)


def _close_all(jobs: list[StreamJob]) -> None:
    for job in jobs:
        close_quietly(job)
