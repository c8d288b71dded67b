"""Which transports there are, the best first, and which of them one side is willing to use."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Final

from spoke.errors import InvalidRequest
from spoke.transport.carrier import Carrier, Unavailable
from spoke.transport.shm_carrier import ShmCarrier
from spoke.transport.tcp import TcpCarrier

VARIABLE: Final = "SPOKE_TRANSPORT"
NAMES: Final = ("shm", "rdma", "tcp")  # the best first


class Choice:
    """The transports that one side may use: all of them, or the one that was asked for."""

    def __init__(self, wanted: str | None = None) -> None:
        """``wanted``: a name, else SPOKE_TRANSPORT, else any. Raises InvalidRequest for a name that is none."""
        said = "transport" if wanted else VARIABLE
        wanted = wanted or os.environ.get(VARIABLE) or None
        if wanted is not None and wanted not in NAMES:
            raise InvalidRequest(f"{said} is {wanted!r:.80}; it must be one of {', '.join(NAMES)}, or not be given")
        self.forced = wanted
        self.names = NAMES if wanted is None else (wanted,)
        self.excluded = {} if wanted is None else dict.fromkeys(NAMES, f"{said}={wanted} was asked for")
        self.excluded.pop(wanted or "", None)

    def prepare(self) -> None:
        """Load what a transport needs, before a peer waits for it: pyverbs takes seconds from a slow disk."""
        if "rdma" in self.names:
            _load_rdma()

    def carrier(self, name: str) -> Carrier:
        """The carrier of that name; Unavailable with the reason if there is none, or if it is not to be used."""
        if name in self.excluded:
            raise Unavailable(self.excluded[name])
        if name == "tcp":
            return TcpCarrier()
        if name == "rdma":
            from spoke.transport.rdma.carrier import RdmaCarrier  # late: few machines have it

            return RdmaCarrier()
        if name == "shm":
            return ShmCarrier()
        raise Unavailable("this release does not have it")


@functools.cache
def _load_rdma() -> None:
    from spoke.transport.rdma.device import usable  # late: few machines have it

    with contextlib.suppress(Exception):  # what is wrong is said to who wants to use it
        usable()


def better_than(name: str) -> tuple[str, ...]:
    """The transports that would have been taken instead, had they been possible."""
    return NAMES[: NAMES.index(name)]
