"""Data between processes: values, frames, endpoints and calls. Knows nothing of pools, tickets or Redis."""

from spoke.transport.call import Connection, connect
from spoke.transport.carrier import Transport
from spoke.transport.future import CallFuture
from spoke.transport.serve import CallServer
from spoke.transport.stream import Stream
from spoke.transport.values import pack, unpack

__all__ = ["CallFuture", "CallServer", "Connection", "Stream", "Transport", "connect", "pack", "unpack"]
