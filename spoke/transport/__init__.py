"""Data between processes: values, frames, endpoints and calls. Knows nothing of pools, tickets or Redis."""

from spoke.transport.call import CallFuture, CallServer, Connection, connect
from spoke.transport.values import pack, unpack

__all__ = ["CallFuture", "CallServer", "Connection", "connect", "pack", "unpack"]
