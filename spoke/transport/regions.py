"""Memory that others may read and write: the owner's side. It is served by a thread of its own, and by no user code."""

from __future__ import annotations

import contextlib
import mmap
import queue
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

from spoke.errors import InvalidRequest, SpokeError
from spoke.transport.buffers import view_of
from spoke.transport.closing import Closing
from spoke.transport.direct import Loan, Unavailable
from spoke.transport.handles import KEY_BYTES, BufferHandle
from spoke.transport.job import Job
from spoke.transport.shm_buffer import SharedMemory

PIECE_BYTES_MAX: Final = 64 << 20
LOCK_S: Final = 5.0


class Region:
    """One piece of memory. ``lock`` is held while it is read or written; ``area`` is None once it was closed."""

    def __init__(self, area: memoryview, writable: bool, shared: SharedMemory | None = None) -> None:
        self.lock = threading.Lock()
        self.area: memoryview | None = area
        self.writable = writable
        self.shared = shared
        self.loans: dict[object, Loan] = {}

    def close(self, timeout_s: float = LOCK_S) -> None:
        """Let nobody reach it any more; returns when nobody does, or, where somebody stands still, after a while."""
        locked = self.lock.acquire(timeout=timeout_s)
        try:
            for loan in self.loans.values():  # before the memory may go
                loan.close()
            self.loans.clear()
            self.area = None
            if self.shared is not None:
                self.shared.close()
        finally:
            if locked:
                self.lock.release()


class Answers(Protocol):
    """How a service of a server answers."""

    def answer(self, job: Job, result: object, *, may_wait: bool) -> None:
        """With a value."""

    def fail(self, job: Job, error: SpokeError) -> None:
        """With an error."""


class MemoryTable:
    """The memory that a server lets its callers reach. Callers have proved that they know the ticket's secret."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._regions: dict[bytes, Region] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def services(self) -> dict[str, Callable[[Job], None]]:
        """What callers can ask for."""
        return {
            "memory.read": lambda job: self._enqueue(self._read, job),
            "memory.write": lambda job: self._enqueue(self._write, job),
            "memory.reach": lambda job: self._enqueue(self._reach, job),
        }

    def register(self, region: Region) -> bytes:
        """Let callers reach the memory; the key that names it."""
        key = secrets.token_bytes(KEY_BYTES)
        self._regions[key] = region
        return key

    def forget(self, key: bytes) -> None:
        """Let nobody reach it any more. Takes no lock: the garbage collector may call it."""
        region = self._regions.pop(key, None)
        if region is None:
            return
        if region.shared is not None:
            region.shared.mark_closed()
        self._queue.put(region.close)  # by the thread; where there is none, nothing was ever lent

    def withdraw(self, key: bytes) -> None:
        """The same; when it returns, nobody reads or writes the memory."""
        region = self._regions.pop(key, None)
        if region is not None:
            region.close()

    def close(self, timeout_s: float) -> None:
        """Withdraw everything, and end the thread."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
            thread = self._thread
        self._queue.put(None)
        if thread is not None:
            thread.join(timeout_s)
        while self._regions:
            self._regions.popitem()[1].close(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(queue.Empty):
            while True:
                left = self._queue.get_nowait()
                if left is not None:
                    left()

    def _enqueue(self, work: Callable[[Job], None], job: Job) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spoke-memory", daemon=True)
                self._thread.start()
        self._queue.put(lambda: self._serve(work, job))

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def _serve(self, work: Callable[[Job], None], job: Job) -> None:
        if job.cancelled or self._closed:
            return
        try:
            work(job)
        except SpokeError as error:
            self._answers.fail(job, error)
        except Exception as error:
            self._answers.fail(job, InvalidRequest(f"{job.name} makes no sense: {error}"))

    def _read(self, job: Job) -> None:
        key, offset, nbytes = _checked(job.args, (bytes, int, int))
        region = self._find(key)
        with region.lock:
            self._answers.answer(job, _range(region, offset, nbytes), may_wait=True)

    def _write(self, job: Job) -> None:
        key, offset, data = _checked(job.args, (bytes, int, memoryview))
        region = self._find(key)
        if not region.writable:
            raise InvalidRequest("the buffer may only be read: its owner made it with writable=False")
        with region.lock:
            _range(region, offset, data.nbytes)[:] = data
        self._answers.answer(job, None, may_wait=True)

    def _reach(self, job: Job) -> None:
        """Grant what the caller needs to reach the memory by itself, or say why it must go by calls."""
        key, wishes = _checked(job.args, (bytes, dict))
        region = self._find(key)
        with region.lock:
            if region.area is None:
                raise InvalidRequest("the buffer was closed by its owner")
            try:
                grant = job.caller.endpoint.lend(region, wishes)
            except Unavailable as error:
                grant = {"why_not": str(error)}
        self._answers.answer(job, grant, may_wait=True)

    def _find(self, key: bytes) -> Region:
        region = self._regions.get(key)
        if region is None:
            raise InvalidRequest("there is no such buffer: its owner has closed it, or let go of it")
        return region


def _checked(args: list[Any], kinds: tuple[type, ...]) -> list[Any]:
    if tuple(map(type, args)) != kinds:
        raise InvalidRequest("a request for memory does not hold the fields it should")
    return args


def _range(region: Region, offset: int, nbytes: int) -> memoryview:
    area = region.area
    if area is None:
        raise InvalidRequest("the buffer was closed by its owner")
    if offset < 0 or nbytes < 0 or offset + nbytes > len(area) or nbytes > PIECE_BYTES_MAX:
        raise InvalidRequest(f"bytes {offset} to {offset + nbytes} were asked for; the buffer has {len(area)}")
    return area[offset : offset + nbytes]


class Home(Protocol):
    """Where the buffers of a ticket live in this process: what others reach, and how."""

    address: str
    scope: bytes
    memory: MemoryTable


_actor_home: list[Home] = []


def set_home(home: Home) -> None:
    """Say where the buffers of this process live; for an actor's process, which has one ticket."""
    _actor_home[:] = [home]


class Buffer(Closing):
    """Memory that the other processes of a ticket may read and write, by its ``handle``.

    ``data`` is a contiguous array, tensor or other memory, which is used as it is and not copied, or a number of bytes
    to reserve. Over RDMA the network cards copy between both sides' memory; on one machine, others map what was
    reserved. In a client, give the ``gang`` whose actors may reach it; an actor's belong to its own gang. With
    ``writable=False`` others can only read. Keep the buffer as long as others use it: they get an error once it was
    closed, or collected, or its process has ended.

    >>> with spoke.Buffer(bytearray(b"weights"), worker.gang) as buffer:
    ...     worker.call("read", buffer.handle).result()
    b'weights'
    """

    def __init__(self, data: Any, gang: Any = None, *, writable: bool = True) -> None:
        if gang is not None:
            home: Home = getattr(gang, "sync", gang).memory_home()
        elif _actor_home:
            home = _actor_home[0]
        else:
            raise InvalidRequest("outside of an actor, say whose actors may reach the buffer: spoke.Buffer(data, gang)")
        shared = None
        if isinstance(data, int) and not isinstance(data, bool):
            if data < 0:
                raise InvalidRequest(f"a buffer has 0 bytes or more, not {data}")
            shared = SharedMemory.make(data, writable=writable) if data else None
            data = shared.view if shared else mmap.mmap(-1, data) if data else bytearray()
        try:
            self.view = view_of(data, writable=writable)
        except TypeError as error:
            raise InvalidRequest(
                f"a buffer cannot be made of {type(data).__name__}: {error}; give a contiguous array or tensor in the "
                f"CPU's memory, a bytearray, or a number of bytes"
            ) from None
        self._table = home.memory
        key = self._table.register(Region(self.view, writable, shared))
        self.handle = BufferHandle(home.address, key, self.view.nbytes, writable, home.scope)
        self._finalizer = weakref.finalize(self, self._table.forget, key)

    @property
    def nbytes(self) -> int:
        """Its size.

        >>> spoke.Buffer(1024, worker.gang).nbytes
        1024
        """
        return self.handle.nbytes

    def close(self) -> None:
        """Let nobody reach it any more. When this returns, nobody reads or writes the memory.

        >>> buffer = spoke.Buffer(1024, worker.gang)
        >>> buffer.close()
        """
        self._finalizer.detach()
        self._table.withdraw(self.handle.key)

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes at {self.handle.address}>"
