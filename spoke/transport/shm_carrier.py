"""Agreeing on shared memory: the server hands memory and eventfds to the client over a Unix socket.

The client offers the name of a datagram socket in the abstract namespace. The server sends the descriptors there: that
works if, and only if, both are on one machine and in one network namespace (see ``handover``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import ClassVar, Final

from spoke.errors import MalformedData
from spoke.transport.carrier import Acceptance, Carrier, Offer, Params, Unavailable, Wire
from spoke.transport.endpoint import Endpoint
from spoke.transport.handover import TOKEN_BYTES, Inbox, hand_over, is_name
from spoke.transport.shm import ShmEndpoint
from spoke.transport.shm_bells import Bells, check_system
from spoke.transport.shm_memory import Region, create_memory

_FDS: Final = 5  # the memory; data and credit of the server's side; data and credit of the client's side
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What tells this running machine from all others; empty where the kernel does not say."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


class ShmCarrier(Carrier):
    """Memory shared by two processes of one machine."""

    name: ClassVar[str] = "shm"

    def offer(self, wire: Wire) -> Offer:
        """A socket where descriptors can be sent."""
        _check_system()
        return _ShmOffer(wire)

    def accept(self, params: Params, wire: Wire) -> Acceptance:
        """Memory and eventfds, handed over already."""
        name, host = params.get("name"), params.get("boot_id")
        if not is_name(name) or type(host) is not str:
            raise MalformedData("the offer of shared memory does not hold what it should")
        _check_system()
        if host != boot_id():
            raise Unavailable("the client is on another machine")
        return _ShmAcceptance(wire, name)


def _check_system() -> None:
    if not hasattr(os, "memfd_create"):
        raise Unavailable("this system has no memfd_create")
    check_system()


class _ShmOffer(Offer):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._inbox = Inbox()
        self.params = {"name": self._inbox.name, "boot_id": boot_id()}

    def complete(self, answer: Params, deadline: float) -> Endpoint:
        """Takes the descriptors, which were sent before the answer was."""
        token = answer.get("token")
        if type(token) is not bytes or len(token) != TOKEN_BYTES:
            raise MalformedData("the answer on shared memory does not hold what it should")
        fds = self._inbox.receive(token, _FDS)
        if fds is None:
            raise Unavailable("the memory that the actor's side handed over did not arrive")
        try:
            for fd in fds[1:]:
                if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                    raise MalformedData("the peer handed over something else than eventfds")
            region = Region(fds[0])
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        os.close(fds[0])
        server_data, server_credit, client_data, client_credit = fds[1:]
        bells = Bells((client_data, server_credit, server_data, client_credit))
        return _endpoint(self._wire, region, bells, 1)

    def close(self) -> None:
        self._inbox.close()


class _ShmAcceptance(Acceptance):
    def __init__(self, wire: Wire, name: bytes) -> None:
        token = secrets.token_bytes(TOKEN_BYTES)
        self._wire = wire
        self._region: Region | None = None
        self._fds: list[int] = []
        memory = create_memory()
        try:
            for _ in range(_FDS - 1):
                self._fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self._region = Region(memory)
            try:
                hand_over(name, token, [memory, *self._fds])
            except OSError as error:
                raise Unavailable(
                    f"the client is on this machine, but memory cannot be handed to it ({error.strerror}); "
                    "is it in another network namespace, such as a container's?"
                ) from error
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)
        self.answer = {"token": token}

    def endpoint(self) -> Endpoint:
        assert self._region is not None
        region, self._region = self._region, None
        server_data, server_credit, client_data, client_credit = self._fds
        self._fds = []
        bells = Bells((server_data, client_credit, client_data, server_credit))
        return _endpoint(self._wire, region, bells, 0)

    def close(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)
        if self._region is not None:
            self._region.close()
            self._region = None


def _endpoint(wire: Wire, region: Region, bells: Bells, side: int) -> Endpoint:
    try:
        return ShmEndpoint(wire.sock, wire.peer, region, bells, side, limit_bytes=wire.limit_bytes)
    except BaseException:
        bells.close()
        region.close()
        raise
