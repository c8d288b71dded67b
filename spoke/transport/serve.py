"""Calls from the actor's side: the thread that reads a call executes it, while another one reads on.

All workers wait in one epoll. A connection is armed for one event; the worker that gets it reads, queues the calls
in the order they came, arms the connection again and executes. So a small call needs no hand-over between threads,
and a slow one blocks nobody: there is always one thread more than may execute, and it reads. Async methods run on
one event loop in a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from spoke.errors import InvalidRequest, LimitExceeded, MalformedData, SpokeError
from spoke.transport.auth import check_secret
from spoke.transport.credit import SenderCredit
from spoke.transport.door import Door
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import FRAME_BYTES_MAX, Frame, Incoming, Kind
from spoke.transport.handles import scope_id
from spoke.transport.job import Caller, Job, StreamJob
from spoke.transport.mailboxes import Mailboxes, MailboxJob
from spoke.transport.messages import read_count, read_mailbox, unpack_call, unpack_stream
from spoke.transport.methods import Methods
from spoke.transport.regions import MemoryTable
from spoke.transport.running import Runner

log = logging.getLogger("spoke.actor")
_CALL: Final = Kind.CALL  # looked up once: an enum's attributes are slow
_J = TypeVar("_J", bound=Job)

OUTSTANDING_MAX: Final = 100_000
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT


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
        self._runner = Runner(self._lock, self._settle)
        self._mailboxes = Mailboxes(self._lock)
        self.memory = MemoryTable(self._runner)
        self.scope = scope_id(secret)
        self._services = self.memory.services()
        self._door: Door | None = None
        self._closing = False

    def start(self) -> None:
        """Listen on a free port and serve; ``address`` is known from then on."""
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._door = Door(self._host, self._secret, self.add, limit_bytes=self._limit_bytes)
        advertise = f"[{self._advertise}]" if ":" in self._advertise else self._advertise
        self.address = f"tcp://{advertise}:{self._door.port}"
        with self._lock:
            self._spawn()
        self._door.start()

    def offer(self, name: str, service: Callable[[Job], None]) -> None:
        """Let callers ask for something that is no method of the target. ``service`` must not block."""
        self._services[name] = service

    def answer(self, job: Job, result: object) -> None:
        """Answer what was asked of a service."""
        self._runner.answer(job, result, may_wait=False)

    def fail(self, job: Job, error: SpokeError) -> None:
        """Refuse what was asked of a service."""
        self._runner.fail(job, error)

    def push(self, value: object, to: Caller | None = None, *, timeout_s: float = 0.0) -> int:
        """Put a value into the mailboxes that callers have opened, or into those of one; how many took it."""
        return self._mailboxes.push(value, to, timeout_s)

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
        deadline = time.monotonic() + timeout_s
        self._door.close(timeout_s)
        with self._lock:
            callers = {caller for caller, _ in self._callers.values()}
            threads = set(self._threads)
        for caller in callers:
            caller.endpoint.shutdown()
        os.eventfd_write(self._stop, 1)
        self._runner.close(max(0.1, deadline - time.monotonic()))
        self._mailboxes.close()
        self.memory.close(max(0.1, deadline - time.monotonic()))
        for thread in threads - {threading.current_thread()}:
            thread.join(max(0.0, deadline - time.monotonic()))
        for caller in callers:
            self._drop(caller)
        with self._lock:
            self._epoll.close()
            os.close(self._stop)
            os.close(self._wake)

    # Connections.

    def add(self, endpoint: Endpoint) -> None:
        """Serve one more caller over an endpoint whose peer has proved itself."""
        caller = Caller(endpoint)
        endpoint.wants_flush = lambda: self._arm_flush(caller)
        with self._lock:
            if not self._closing:
                self._callers[caller.fd] = (caller, False)
                self._callers[caller.flush_fd] = (caller, True)
                self._epoll.register(caller.flush_fd, 0)
                self._epoll.register(caller.fd, _ONCE)
                return
        endpoint.close()

    def _arm_flush(self, caller: Caller) -> None:
        with self._lock:
            if not caller.gone and not self._closing:
                self._epoll.modify(caller.flush_fd, caller.endpoint.flush_events | select.EPOLLONESHOT)

    def _drop(self, caller: Caller) -> None:
        """Forget a caller: what it asked for and has not begun will not begin. Only its reader may do this."""
        with self._lock:
            if caller.gone:
                return
            caller.gone = True
            jobs = list(caller.jobs.values())
            caller.jobs.clear()
            for job in jobs:
                if job.kind is not Kind.TELL:  # what was told is done, also when its sender has left
                    job.cancel()
            for fd in (caller.fd, caller.flush_fd):
                self._callers.pop(fd, None)
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(fd)
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
            self._runner.execute(job)
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
        except Exception:  # no memory for what comes, say: this worker has others to serve
            log.exception("reading what %s sends failed; the connection is ended", caller.endpoint.peer)
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
                self._arm_flush(caller)
        except EndpointClosed:
            caller.endpoint.shutdown()  # its reader is told, and drops it
        if caller.paused:
            self._resume(caller)

    # Calls.

    def _take(self, caller: Caller, incoming: Incoming) -> None:
        kind = incoming.kind
        if not isinstance(incoming, Frame):
            if kind in (Kind.CALL, Kind.STREAM, Kind.ASK):
                error = LimitExceeded(f"the call was not made: {incoming}")
                self._runner.send_error(caller, incoming.call_id, error)
            elif kind is Kind.TELL:
                log.error("a call that %s told was not made: %s", caller.endpoint.peer, incoming)
        elif kind is _CALL or kind is Kind.STREAM or kind is Kind.TELL:
            self._take_call(caller, incoming)
        elif kind is Kind.ASK:
            self._take_ask(caller, incoming)
        elif kind is Kind.MAILBOX:
            self._mailboxes.open(self._enter(MailboxJob(caller, incoming.call_id, read_mailbox(incoming))))
        elif kind is Kind.CREDIT:
            items = read_count(incoming)
            with self._lock:
                job = caller.jobs.get(incoming.call_id)
                if job is not None:
                    job.granted(items)
        elif kind is Kind.CANCEL:
            job = self._settle(caller, incoming.call_id)
            if job is not None:
                with self._lock:
                    job.cancel()

    def _take_call(self, caller: Caller, incoming: Frame) -> None:
        kind, call_id = incoming.kind, incoming.call_id
        window = None
        try:
            if kind is Kind.STREAM:
                name, args, kwargs, window = unpack_stream(incoming)
            else:
                name, args, kwargs = unpack_call(incoming)
            function, is_async = self._methods.find(name)
        except SpokeError as error:
            if kind is Kind.TELL:
                log.error("a call that %s told was not made: %s", caller.endpoint.peer, error)
            else:
                self._runner.send_error(caller, call_id, error)
            return
        full_name = self._methods.full_name(name)
        job: Job
        if window is None:
            job = Job(caller, call_id, kind, full_name, function, args, kwargs, incoming.nbytes)
        else:
            credit = SenderCredit(window)
            job = StreamJob(
                caller, call_id, kind, full_name, function, args, kwargs, incoming.nbytes, credit, self._resume_job
            )
        self._enter(job, queued=not is_async)
        if is_async:
            self._runner.start_async(job, lambda: function(*args, **kwargs))

    def _take_ask(self, caller: Caller, incoming: Frame) -> None:
        try:
            name, args, kwargs = unpack_call(incoming)
            service = self._services.get(name)
            if service is None:
                raise InvalidRequest(f"there is nothing called {name[:100]!r} to ask for; are both of one release?")
        except SpokeError as error:
            self._runner.send_error(caller, incoming.call_id, error)
            return
        job = Job(caller, incoming.call_id, Kind.ASK, name, service, args, kwargs, incoming.nbytes)
        service(self._enter(job))

    def _enter(self, job: _J, *, queued: bool = False) -> _J:
        """Put a job among the outstanding ones of its caller."""
        caller = job.caller
        with self._lock:
            if job.call_id in caller.jobs:
                raise MalformedData("a call's id is in use")
            caller.jobs[job.call_id] = job
            caller.held_bytes += job.nbytes
            if queued:
                self._jobs.append(job)
        return job

    def _resume_job(self, job: Job) -> None:
        """Under the lock: a stream that was parked goes on."""
        if not self._closing:
            self._jobs.append(job)
            os.eventfd_write(self._wake, 1)

    def _settle(self, caller: Caller, call_id: int) -> Job | None:
        """Take a call off the outstanding ones; None if it was already: then nobody waits for an answer."""
        with self._lock:
            job = caller.jobs.pop(call_id, None)
            if job is not None:
                caller.held_bytes -= job.nbytes
        if caller.paused:
            self._resume(caller)
        return job
