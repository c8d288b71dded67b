"""Renewing a lease. The allocator grants it; its holder renews it; once run out it cannot be renewed."""

from __future__ import annotations

from spoke.protocol.keys import Keys
from spoke.protocol.scripts import Script
from spoke.protocol.server import Redis

_RENEW = Script("spoke.protocol", "renew.lua")


def renew_lease(client: Redis, keys: Keys, holder: str, lease_ms: int) -> bool:
    """Renew a lease; False if it was lost (or never granted)."""
    return bool(_RENEW.run(client, [keys.leases], [holder, lease_ms]))
