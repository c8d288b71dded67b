"""Renewing a lease. The allocator grants it; its holder renews it; once run out it cannot be renewed."""

from __future__ import annotations

from importlib.resources import files
from typing import cast

from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis

_RENEW = files("spoke.protocol").joinpath("renew.lua").read_text()


def renew_lease(client: Redis, keys: Keys, holder: str, lease_ms: int) -> bool:
    """Renew a lease; False if it was lost (or never granted)."""
    return bool(cast(int, client.register_script(_RENEW)(keys=[keys.leases], args=[holder, lease_ms])))
