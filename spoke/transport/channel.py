"""A connection to one actor: any number of outstanding futures, and nobody woken in vain.

A thread that waits for a result reads the connection itself, so that the answer needs no hand-over between threads.
Only when nobody waits (callbacks, asyncio, ``concurrent.futures.wait``) does the connection's own thread read. The
two share ``_reading``: whoever holds it reads. The own thread's epoll is one-shot: it must be *armed* to be woken by
an answer. A waiting thread disarms it, and arms it again when it leaves while another thread waits. Otherwise it will
probably come back soon, for the next of several calls or after one more: so it stays disarmed, and the own thread
*watches* for a while: it goes on when a call is outstanding and a whole tick has passed in which nobody waited.

Futures are completed only after ``_reading`` was let go, so that a callback may itself wait for another call. Items of
streams are put in line before that, so that two readers cannot mix up their order, nor let the end overtake them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import time
from collections import deque
from typing import Final

from spoke.errors import ActorUnreachable, CallTimeout, ClientClosed, LimitExceeded, MalformedData
from spoke.transport import forked
from spoke.transport.carrier import Transport
from spoke.transport.direct import Copy, RemoteMemory
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Frame, Incoming, Kind
from spoke.transport.future import CallFuture
from spoke.transport.messages import pack_count
from spoke.transport.negotiate import transport_of
from spoke.transport.outstanding import Outstanding, settle
from spoke.transport.spin import Spin
from spoke.transport.values import Buffers

log = logging.getLogger(__name__)

CLOSE_S: Final = 5.0
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
_ITEM, _RESULT = Kind.ITEM, Kind.RESULT  # looked up once: an enum's attributes are slow
_TICK_S: Final = 0.002
_TICK_S_MAX: Final = 0.05
_WATCH_TICKS: Final = 25


class Channel:
    """What is outstanding with one actor, and the reading of its answers; usable from any thread."""

    def __init__(self, endpoint: Endpoint, name: str = "") -> None:
        self._endpoint = endpoint
        self._name = name or endpoint.peer
        self._lock = threading.Lock()
        self._outstanding = Outstanding(self._ring)
        self._abandoned: deque[CallFuture] = deque()
        self._end: str | None = None
        self._freed = False
        self._forked = False
        self._reading = threading.Lock()
        self._leader: CallFuture | None = None
        self._armed = True
        self._watching = False
        self._led = False  # since the last tick
        self._begin_s = 0.0  # how long it took to begin the last transfer
        self._crowded = False  # a thread came to wait while another one read
        self._fd = endpoint.readable_fd()
        self._flush_fd = endpoint.flush_fd()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes the own thread
        self._nudge = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes the thread that waits and reads
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._nudge, select.POLLIN)
        self._spin = Spin()
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._epoll.register(self._flush_fd, 0)
        self._epoll.register(self._fd, _ONCE)
        endpoint.wants_flush = self._arm_flush
        self._thread = threading.Thread(target=self._run, name=f"spoke-calls-{endpoint.peer}", daemon=True)
        self._thread.start()
        forked.watch(self)

    @property
    def closed(self) -> bool:
        """Whether no call can be made any more."""
        return self._end is not None

    @property
    def peer(self) -> str:
        """The other side, for messages."""
        return self._name

    @property
    def transport(self) -> Transport:
        """What carries the calls, and why nothing better."""
        return transport_of(self._endpoint)

    def close(self) -> None:
        """End the connection and free it, in any state and within seconds; outstanding calls fail."""
        self._end_with("it was closed on this side")
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_S)

    def leave_to_parent(self) -> None:
        """In a forked child: the connection is the parent's, whose threads may have held the locks at the fork."""
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._end, self._freed, self._forked = forked.FORKED, True, True
        self._outstanding = Outstanding(self._ring)
        self._outstanding.close()

    def check_process(self, future: CallFuture) -> None:
        """Raise ClientClosed in a forked child, for what has not come before the fork."""
        if self._forked and not future.ready():
            raise ClientClosed(forked.FORKED)

    # Sending.

    def send_for(self, future: CallFuture, kind: Kind, header: bytes, buffers: Buffers) -> None:
        """Make the future an outstanding one and send what it stands for; whatever fails, fails the future."""
        if not self._enter(future):
            return
        try:
            self._endpoint.send(kind, future.call_id, header, buffers, may_wait=True, must=False)
        except LimitExceeded as error:
            self._complete(future, error)
        except EndpointClosed as error:
            self._end_with(str(error))
        except BaseException:
            future.cancel()
            raise

    def begin_for(self, future: CallFuture, remote: RemoteMemory, copy: Copy) -> None:
        """Make the future an outstanding one and begin the transfer that it stands for."""
        if not self._enter(future):
            return
        started = time.monotonic()
        try:
            done = remote.begin(copy, future.call_id)
        except EndpointClosed as error:
            self._end_with(str(error))
            return
        except BaseException as error:
            self._complete(future, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._begin_s = time.monotonic() - started
            if done:
                self._complete(future, None)

    def send_unanswered(self, kind: Kind, header: bytes, buffers: Buffers) -> str:
        """Send what nobody answers; why the connection has ended, if it has. Raises LimitExceeded."""
        if self._end is not None:
            return self._end
        try:
            self._endpoint.send(kind, self._outstanding.new_id(), header, buffers, may_wait=True, must=False)
        except EndpointClosed as error:
            self._end_with(str(error))
            return str(error)
        return ""

    # What a future asks of its connection.

    def read_for(self, future: CallFuture, timeout_s: float | None) -> float | None:
        """Read until the future is done or somebody else reads; how much of the timeout is left."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not future.ready() and self._end is None:
            if not self._reading.acquire(blocking=False):
                self._crowded = True
                break  # whoever reads completes this future too, or lets the own thread go on
            found: list[Incoming] = []
            try:
                self._leader = future
                if not future.ready() and self._end is None:
                    if self._armed:
                        self._armed = False
                        self._epoll.modify(self._fd, 0)
                    found = self._wait_and_receive(min(until, future.deadline))
            finally:
                self._leader = None
                self._led = True
                self._reading.release()
                self._leave(others=len(self._outstanding) > len(found))
            self._deliver(found)
            now = time.monotonic() if until < math.inf or future.deadline < math.inf else 0.0
            if now >= future.deadline:
                self._expire(now)
            if now >= until:
                break
        if self._forked:
            self.check_process(future)
        return None if timeout_s is None else max(0.0, until - time.monotonic())

    def forget(self, future: CallFuture) -> None:
        """The future was cancelled: nobody waits for its answer any more."""
        if self._outstanding.take(future.call_id) is None:
            return
        self._nudge_leader(future)
        self._send_quietly(Kind.CANCEL, future.call_id)

    def send_credit(self, call_id: int, items: int) -> None:
        """Tell the actor that so many items of a stream were taken."""
        self._send_quietly(Kind.CREDIT, call_id, pack_count(items))

    def abandon(self, future: CallFuture) -> None:
        """The same as ``forget``, later, by the own thread: for the garbage collector, which must take no lock."""
        self._abandoned.append(future)
        # Where the lock is taken, maybe by the very thread that collects, the own thread will look at its next turn.
        if self._lock.acquire(blocking=False):
            try:
                if not self._freed:
                    os.eventfd_write(self._bell, 1)
            finally:
                self._lock.release()

    # Outstanding calls.

    def _enter(self, future: CallFuture) -> bool:
        """Put the future among the outstanding ones, unless the connection has ended."""
        if self._end is None and self._outstanding.enter(future):
            return True
        future.fail(self._unreachable(future, self._end or ""))
        return False

    def _expire(self, now: float) -> float | None:
        """Fail the calls whose time is over; seconds until the next one's is."""
        for future in self._outstanding.late(now):
            text = f"{future.method} on {self._name} got no answer in time; the actor may still be busy"
            if self._complete(future, CallTimeout(text)):
                self._send_quietly(Kind.CANCEL, future.call_id)
        next_at = self._outstanding.next_deadline
        return None if next_at == math.inf else max(0.0, next_at - time.monotonic())

    def _send_quietly(self, kind: Kind, call_id: int, header: bytes = b"") -> None:
        if self._forked:
            return
        with contextlib.suppress(LimitExceeded):
            try:
                self._endpoint.send(kind, call_id, header, (), may_wait=False, must=kind is not Kind.CANCEL)
            except EndpointClosed as error:
                self._end_with(str(error))

    def _complete(self, future: CallFuture, error: BaseException | None) -> bool:
        """End a future without an answer of the peer; False when it had ended before."""
        if self._outstanding.take(future.call_id) is None:
            return False
        if error is None:
            future.succeed(None)
        else:
            future.fail(error)
        self._nudge_leader(future)
        return True

    def _nudge_leader(self, future: CallFuture) -> None:
        if self._leader is future:
            with self._lock:
                if not self._freed:
                    os.eventfd_write(self._nudge, 1)

    def _leave(self, *, others: bool) -> None:
        """See to it that somebody goes on reading, at once where a thread waits for that."""
        if self._crowded and others:
            self._arm()
            return
        if not others:
            self._crowded = False
        if not self._watching:
            self._watch()

    # Reading: only with _reading held.

    def _wait_and_receive(self, until: float) -> list[Incoming]:
        while self._end is None:
            wait_ms = None if until == math.inf else max(0.0, until - time.monotonic()) * 1000
            ready = self._spin.wait(self._poll.poll, wait_ms)
            if not ready:
                return []
            for fd, _ in ready:
                if fd == self._nudge:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._nudge)
                    return []
            found = self._receive()
            if found or (self._leader is not None and self._leader.ready()):
                return found
            if until < math.inf and time.monotonic() >= until:
                return []
        return []

    def _receive(self) -> list[Incoming]:
        try:
            found = self._endpoint.receive()
        except (EndpointClosed, MalformedData) as error:
            self._end_with(str(error))
            return []
        except BaseException:  # Ctrl-C between a read and its bookkeeping: the stream's place is lost
            self._end_with("reading from it was interrupted")
            raise
        answers: list[Incoming] = []
        for incoming in found:
            if incoming.kind is _ITEM and isinstance(incoming, Frame):
                self._line_up(incoming)
            else:
                answers.append(incoming)
        return answers

    def _line_up(self, item: Frame) -> None:
        """Put an item of a stream in its line."""
        stream = self._outstanding.stream(item.call_id)
        if stream is not None:  # else it was closed
            stream.add(item)

    def _deliver(self, found: list[Incoming]) -> None:
        try:
            for incoming in found:
                if incoming.kind is _ITEM:
                    self._refuse_item(incoming)
                elif (future := self._outstanding.take(incoming.call_id)) is not None:
                    settle(future, incoming)
                    self._nudge_leader(future)  # who waits for it may have begun to read since this was read
        except BaseException:
            self._end_with("the delivery of answers was interrupted")
            raise

    def _refuse_item(self, incoming: Incoming) -> None:
        """An item of a stream that is too large ends the stream."""
        stream = self._outstanding.stream(incoming.call_id)
        if stream is not None:
            error = LimitExceeded(f"an item of {stream.method} cannot be taken: {incoming}")
            if self._complete(stream, error):
                self._send_quietly(Kind.CANCEL, incoming.call_id)

    # The own thread.

    def _run(self) -> None:
        try:
            self._attend()
        finally:
            self._end_with("the thread that attends to it has failed")  # unless it had ended
            self._free()

    def _attend(self) -> None:
        seen_id = quiet_ticks = 0
        while self._end is None:
            while self._abandoned:
                self._abandoned.popleft().cancel()
            patience_s = self._expire(time.monotonic())
            if self._watching:
                # A software device copies while a transfer begins, and holds the interpreter: nobody can come sooner.
                tick_s = max(_TICK_S, min(4 * self._begin_s, _TICK_S_MAX))
                patience_s = tick_s if patience_s is None else min(patience_s, tick_s)
                quiet_ticks = quiet_ticks + 1 if self._outstanding.last_id == seen_id else 0
                seen_id = self._outstanding.last_id
                led, self._led = self._led or self._leader is not None, False
                if quiet_ticks > _WATCH_TICKS or (self._outstanding and not led):
                    self._watching = False
                    self._arm()
                    continue
            for fd, _ in self._epoll.poll(patience_s):
                if fd == self._bell:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
                elif fd == self._flush_fd:
                    self._flush()
                elif self._reading.acquire(blocking=False):
                    found: list[Incoming] = []
                    try:
                        if self._end is None:
                            found = self._receive()
                    finally:
                        self._armed = False
                        self._reading.release()
                        self._arm()
                    self._deliver(found)
                    del found

    def _flush(self) -> None:
        try:
            if not self._endpoint.flush():
                self._arm_flush()
        except EndpointClosed as error:
            self._end_with(str(error))

    def _arm(self) -> None:
        with self._lock:
            if not self._freed:
                self._armed = True
                self._epoll.modify(self._fd, _ONCE)

    def _watch(self) -> None:
        self._watching = True
        self._ring()

    def _ring(self) -> None:
        """Wake the own thread."""
        with self._lock:
            if not self._freed:
                os.eventfd_write(self._bell, 1)

    def _arm_flush(self) -> None:
        with self._lock:
            if not self._freed:
                self._epoll.modify(self._flush_fd, self._endpoint.flush_events | select.EPOLLONESHOT)

    def _end_with(self, reason: str) -> None:
        """End the connection; its own thread fails what is outstanding, and frees."""
        with self._lock:
            if self._end is None:
                self._end = reason
            if self._freed:
                return
            os.eventfd_write(self._bell, 1)
        self._endpoint.shutdown()

    def _unreachable(self, future: CallFuture, reason: str) -> ActorUnreachable:
        return ActorUnreachable(
            f"{future.method} on {self._name} got no answer, since the connection has ended: {reason}"
        )

    def _free(self) -> None:
        left = self._outstanding.close()
        self._fail([future for future in left if not future.reaches_memory])
        if self._reading.acquire(timeout=CLOSE_S):  # else a reader does not leave: rather leak than close under it
            with self._lock:
                self._freed = True
                self._epoll.close()
                os.close(self._bell)
                os.close(self._nudge)
            self._endpoint.close()
        self._fail([future for future in left if future.reaches_memory])

    def _fail(self, futures: list[CallFuture]) -> None:
        for future in futures:
            try:
                future.fail(self._unreachable(future, self._end or ""))
            except BaseException:  # a callback's; the others must end, too
                log.exception("a callback of %s failed", future.method)
