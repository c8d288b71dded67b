"""Which leases can be had."""

from __future__ import annotations

from spoke.errors import InvalidRequest

LEASE_MS_MIN, LEASE_MS_MAX = 500, 24 * 3600 * 1000


def check_lease(lease_ms: int) -> None:
    """Raise InvalidRequest for a lease that is too short to renew or absurdly long."""
    if not LEASE_MS_MIN <= lease_ms <= LEASE_MS_MAX:
        raise InvalidRequest(f"a lease of {lease_ms} ms was asked for: {LEASE_MS_MIN} to {LEASE_MS_MAX} can be had")
