"""What the device has counted."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/infiniband/rxe0/ports/1/hw_counters")


def check_receivers_were_ready() -> None:
    """No message ever found its receiver without a slot: credits hold."""
    for name in ("rcvd_rnr_err", "send_rnr_err"):
        assert int((COUNTERS / name).read_text()) == 0, name
