"""Calls from the actor's side: the thread that reads a call executes it, while another one reads on.

All workers wait in one epoll. A connection is armed for one event; the worker that gets it reads, queues the calls
in the order they came, arms the connection again and executes. So a small call needs no hand-over between threads,
and a slow one blocks nobody: there is always one thread more than may execute, and it reads. Async methods run on
one event loop in a thread of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from spoke.errors import InvalidRequest, LimitExceeded, MalformedData, SpokeError
from spoke.transport.auth import check_secret
from spoke.transport.door import Door
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import FRAME_BYTES_MAX, Frame, Incoming, Kind
from spoke.transport.job import Caller, Job, LoopThread, Methods
from spoke.transport.messages import pack_error, remote_error, unpack_call
from spoke.transport.tcp import TcpEndpoint
from spoke.transport.values import pack_apart

OUTSTANDING_MAX: Final = 100_000
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
_FLUSH: Final = select.EPOLLOUT | select.EPOLLONESHOT


class CallServer:
    """Serves the public methods of ``target`` to callers that know the secret."""

    def __init__(
        self,
        target: object,
        *,
        secret: bytes,
        host: str = "0.0.0.0",
        advertise: str,
        workers: int = 16,
        limit_bytes: int = FRAME_BYTES_MAX,
    ) -> None:
        if workers < 1:
            raise InvalidRequest(f"a server needs at least one worker, not {workers}")
        self.address = ""
        self._methods = Methods(target)
        self._secret = check_secret(secret)
        self._host = host
        self._advertise = advertise
        self._workers = workers
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._busy = 0
        self._threads: set[threading.Thread] = set()
        self._callers: dict[int, tuple[Caller, bool]] = {}  # by descriptor; True: it is the one for flushing
        self._loop: LoopThread | None = None
        self._door: Door | None = None
        self._closing = False

    def start(self) -> None:
        """Listen on a free port and serve; ``address`` is known from then on."""
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._door = Door(self._host, self._secret, self._admit)
        advertise = f"[{self._advertise}]" if ":" in self._advertise else self._advertise
        self.address = f"tcp://{advertise}:{self._door.port}"
        with self._lock:
            self._spawn()
        self._door.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop serving and free everything within ``timeout_s``; outstanding calls fail at their callers.

        A plain method that is still running cannot be stopped: its thread ends when it returns.
        """
        with self._lock:
            if self._closing or self._door is None:
                self._closing = True
                return
            self._closing = True
            self._jobs.clear()
            loop = self._loop
        deadline = time.monotonic() + timeout_s
        self._door.close(timeout_s)
        with self._lock:
            callers = {caller for caller, _ in self._callers.values()}
            threads = set(self._threads)
        for caller in callers:
            caller.endpoint.shutdown()
        os.eventfd_write(self._stop, 1)
        if loop is not None:
            loop.close(max(0.1, deadline - time.monotonic()))
        for thread in threads - {threading.current_thread()}:
            thread.join(max(0.0, deadline - time.monotonic()))
        for caller in callers:
            self._drop(caller)
        with self._lock:
            self._epoll.close()
            os.close(self._stop)
            os.close(self._wake)

    # Connections.

    def _admit(self, sock: socket.socket, peer: str) -> None:
        try:
            endpoint = TcpEndpoint(sock, peer, limit_bytes=self._limit_bytes)
        except OSError:  # gone already, or out of descriptors
            sock.close()
            return
        self.add(endpoint)

    def add(self, endpoint: Endpoint) -> None:
        """Serve one more caller over an endpoint whose peer has proved itself."""
        caller = Caller(endpoint)
        endpoint.wants_flush = lambda: self._arm(caller, caller.flush_fd, _FLUSH)
        with self._lock:
            if not self._closing:
                self._callers[caller.fd] = (caller, False)
                self._callers[caller.flush_fd] = (caller, True)
                self._epoll.register(caller.flush_fd, 0)
                self._epoll.register(caller.fd, _ONCE)
                return
        endpoint.close()

    def _arm(self, caller: Caller, fd: int, events: int) -> None:
        with self._lock:
            if not caller.gone and not self._closing:
                self._epoll.modify(fd, events)

    def _drop(self, caller: Caller) -> None:
        """Forget a caller: what it asked for and has not begun will not begin. Only its reader may do this."""
        with self._lock:
            if caller.gone:
                return
            caller.gone = True
            jobs = list(caller.jobs.values())
            caller.jobs.clear()
            for fd in (caller.fd, caller.flush_fd):
                self._callers.pop(fd, None)
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(fd)
        for job in jobs:
            job.cancel()
        caller.endpoint.close()

    # The workers.

    def _spawn(self) -> None:
        """Under the lock: one more worker."""
        thread = threading.Thread(target=self._work, name=f"spoke-worker-{len(self._threads)}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        self._run_jobs()
        while not self._closing:
            for fd, _ in self._epoll.poll(None, 1):
                self._handle(fd)
            self._run_jobs()

    def _run_jobs(self) -> None:
        while (job := self._begin()) is not None:
            self._execute(job)
            with self._lock:
                self._busy -= 1

    def _begin(self) -> Job | None:
        """The next call to execute, if one more may be; sees to it that somebody goes on reading."""
        with self._lock:
            if not self._jobs or self._busy >= self._workers or self._closing:
                return None
            job = self._jobs.popleft()
            self._busy += 1
            if len(self._threads) == self._busy:
                self._spawn()
            elif self._jobs:
                os.eventfd_write(self._wake, 1)
            return job

    def _handle(self, fd: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
            return
        caller, flushing = self._callers.get(fd, (None, False))
        if caller is None or self._closing:
            return
        if flushing:
            self._flush(caller)
            return
        try:
            for incoming in caller.endpoint.receive():
                self._take(caller, incoming)
        except (EndpointClosed, MalformedData):
            self._drop(caller)
            return
        with self._lock:
            caller.paused = self._must_pause(caller)
            if not caller.paused and not caller.gone and not self._closing:
                self._epoll.modify(fd, _ONCE)

    def _must_pause(self, caller: Caller) -> bool:
        """Whether to stop reading from a caller, so that the network holds it back."""
        return (
            len(caller.jobs) >= OUTSTANDING_MAX
            or caller.held_bytes > self._limit_bytes
            or caller.endpoint.backlog_bytes > self._limit_bytes
        )

    def _resume(self, caller: Caller) -> None:
        with self._lock:
            if caller.paused and not caller.gone and not self._closing and not self._must_pause(caller):
                caller.paused = False
                self._epoll.modify(caller.fd, _ONCE)

    def _flush(self, caller: Caller) -> None:
        try:
            if not caller.endpoint.flush():
                self._arm(caller, caller.flush_fd, _FLUSH)
        except EndpointClosed:
            caller.endpoint.shutdown()  # its reader is told, and drops it
        if caller.paused:
            self._resume(caller)

    # Calls.

    def _take(self, caller: Caller, incoming: Incoming) -> None:
        if not isinstance(incoming, Frame):
            if incoming.kind is Kind.CALL:
                self._send_error(caller, incoming.call_id, LimitExceeded(f"the call was not made: {incoming}"))
            return
        if incoming.kind is Kind.CANCEL:
            job = self._settle(caller, incoming.call_id)
            if job is not None:
                job.cancel()
            return
        if incoming.kind is not Kind.CALL:
            return
        try:
            name, args, kwargs = unpack_call(incoming)
            function, is_async = self._methods.find(name)
        except SpokeError as error:
            self._send_error(caller, incoming.call_id, error)
            return
        job = Job(caller, incoming.call_id, self._methods.full_name(name), function, args, kwargs, incoming.nbytes)
        with self._lock:
            if incoming.call_id in caller.jobs:
                raise MalformedData("a call's id is in use")
            caller.jobs[job.call_id] = job
            caller.held_bytes += job.nbytes
            if not is_async:
                self._jobs.append(job)
        if is_async:
            self._start_async(job, lambda: function(*args, **kwargs))

    def _execute(self, job: Job) -> None:
        if job.cancelled:
            return
        try:
            result = job.function(*job.args, **job.kwargs)
        except BaseException as error:
            self._answer_error(job, error, may_wait=True)
            return
        if inspect.iscoroutine(result):  # a plain function that hands one on, such as a decorator's
            self._start_async(job, lambda: result)
            return
        self._answer(job, result, may_wait=True)

    def _start_async(self, job: Job, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        with self._lock:
            if self._closing:
                return
            if self._loop is None:
                self._loop = LoopThread()
            loop = self._loop
        job.task_canceller = loop.submit(self._run_async(job, make))
        if job.cancelled:
            job.cancel()

    async def _run_async(self, job: Job, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            work = make()
            if job.cancelled:
                work.close()
                return
            result = await work
        except BaseException as error:
            self._answer_error(job, error, may_wait=False)
        else:
            self._answer(job, result, may_wait=False)

    def _settle(self, caller: Caller, call_id: int) -> Job | None:
        """Take a call off the outstanding ones; None if it was already: then nobody waits for an answer."""
        with self._lock:
            job = caller.jobs.pop(call_id, None)
            if job is not None:
                caller.held_bytes -= job.nbytes
        if caller.paused:
            self._resume(caller)
        return job

    def _answer(self, job: Job, result: object, *, may_wait: bool) -> None:
        if self._settle(job.caller, job.call_id) is None:
            return
        try:
            header, buffers = pack_apart(result, f"the result of {job.name}")
            job.caller.endpoint.send(Kind.RESULT, job.call_id, header, buffers, may_wait=may_wait, must=True)
        except EndpointClosed:
            job.caller.endpoint.shutdown()
        except SpokeError as error:
            self._send_error(job.caller, job.call_id, error)
        except Exception as error:
            self._send_error(job.caller, job.call_id, remote_error(f"sending the result of {job.name}", error))

    def _answer_error(self, job: Job, error: BaseException, *, may_wait: bool) -> None:
        if self._settle(job.caller, job.call_id) is not None:
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next  # not our own line
            self._send_error(job.caller, job.call_id, remote_error(job.name, error), may_wait=may_wait)

    def _send_error(self, caller: Caller, call_id: int, error: SpokeError, *, may_wait: bool = False) -> None:
        try:
            caller.endpoint.send(Kind.ERROR, call_id, pack_error(error), (), may_wait=may_wait, must=True)
        except (EndpointClosed, LimitExceeded):
            caller.endpoint.shutdown()
