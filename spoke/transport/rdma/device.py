"""The opened device: one context, protection domain and set of pools for all connections of a ticket.

It is opened with the first user and closed with the last one, in the order that verbs demand: queue pairs before
completion queues before channels (their owner does that), then memory regions, protection domain, context.

A key of registered memory works for every queue pair of its protection domain, and it is short enough to be guessed.
So each ticket has a domain of its own: whoever has a queue pair there has proved that it knows the ticket's secret.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import weakref
from typing import Any, Final

from spoke.transport.rdma.pool import Pool
from spoke.transport.rdma.ports import Choice, choose, ports
from spoke.transport.rdma.registered import UsersMemory
from spoke.transport.rdma.verbs import VerbsMissing, load

READS_MAX: Final = 16
_MTU_BYTES: Final = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
_MTU_CODES: Final = {nbytes: code for code, nbytes in _MTU_BYTES.items()}


class Device:
    """One opened port. Users come by :func:`acquire` and leave by ``release``."""

    def __init__(self, choice: Choice, scope: bytes) -> None:
        self.verbs = load()
        e = self.verbs.e
        self.choice = choice
        self._key = _key(choice, scope)
        self.users = 0
        try:
            self.context: Any = self.verbs.Context(name=choice.port.device)
        except Exception as error:
            raise VerbsMissing(
                f"{choice.port.device} cannot be opened ({error}); the process needs /dev/infiniband/uverbs* "
                "(in a container: pass the devices on)"
            ) from error
        try:
            port = self.context.query_port(choice.port.port)
            limit = choice.mtu_bytes_max or 4096
            self.mtu_bytes: int = min(_MTU_BYTES[port.active_mtu], limit)
            attributes = self.context.query_device()
            self.reads_max: int = max(1, min(READS_MAX, attributes.max_qp_rd_atom, attributes.max_qp_init_rd_atom))
            self.pd: Any = self.verbs.PD(self.context)
        except Exception as error:
            self.context.close()
            raise VerbsMissing(f"{choice.port.name} cannot be used ({error})") from error
        self.staging = Pool(lambda address, nbytes: self.register(address, nbytes, e.IBV_ACCESS_REMOTE_READ))
        self.landing = Pool(lambda address, nbytes: self.register(address, nbytes, e.IBV_ACCESS_LOCAL_WRITE))
        self.users_memory = UsersMemory(self.register, e, safe=self.verbs.fork_is_safe)

    def register(self, address: int, nbytes: int, access: int) -> Any:
        """A memory region over existing memory; raises pyverbs' error."""
        return self.verbs.MR(self.pd, nbytes, access, address=address)

    def release(self) -> None:
        """One user less; the last one closes the device."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            _open.pop(self._key, None)
            self._close()

    def _close(self) -> None:
        self.users_memory.close()
        self.staging.close()
        self.landing.close()
        self.pd.close()
        self.context.close()


queue_pairs: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()
_open: dict[tuple[object, ...], Device] = {}


def _key(choice: Choice, scope: bytes) -> tuple[object, ...]:
    return (choice.port.device, choice.port.port, choice.gid.index, choice.mtu_bytes_max, scope)


def usable() -> Choice | str:
    """The port that would be used, or why RDMA cannot be used here. Loads pyverbs only where there is a device."""
    choice = choose(ports())
    if isinstance(choice, str):
        return choice
    try:
        load()
    except VerbsMissing as missing:
        return str(missing)
    return choice


def acquire(choice: Choice | None = None, scope: bytes = b"") -> Device:
    """The device, opened for a ticket, for one more user; raises VerbsMissing with a remedy."""
    if choice is None:
        found = choose(ports())
        if isinstance(found, str):
            raise VerbsMissing(found)
        choice = found
    with _lock:
        key = _key(choice, scope)
        device = _open.get(key)
        if device is None:
            device = _open[key] = Device(choice, scope)
        device.users += 1
        return device


def mtu_code(nbytes: int) -> int:
    """The verbs' number for a path MTU."""
    return _MTU_CODES[nbytes]


def _leave_be() -> None:
    """Nothing that is open may be finalized any more."""
    for thing in (*_open.values(), *queue_pairs):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _abandon() -> None:
    """In a forked child: the devices are the parent's, and finalizers would destroy them."""
    global _lock
    _lock = threading.Lock()
    _leave_be()
    _open.clear()


os.register_at_fork(after_in_child=_abandon)
# What a program has not closed when it ends is the system's to free: the interpreter would finalize it in no order,
# under threads that still use it.
atexit.register(_leave_be)
