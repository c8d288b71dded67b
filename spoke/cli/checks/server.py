"""What ``spoke doctor`` makes of the server: its version, what it may throw away, its disk, its replicas, its clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from spoke.cli.checks.finding import ABSENT, BROKEN, OK, WARNING, Finding, some
from spoke.cli.output import size

SKEW_S_MAX: Final = 2.0
FULL, NEARLY_FULL = 0.95, 0.80
REPLICA_LAG_S_MAX: Final = 10
REPLICA_BYTES_MAX: Final = 16 << 20
ACL_SINCE: Final = 7
"""Key permissions for reading and writing apart, which deploy/users.acl uses, came with Redis 7.0."""

Info = Mapping[str, Any]


def version(info: Info, where: str) -> Finding:
    """Which server it is."""
    valkey = "valkey_version" in info
    found = str(info["valkey_version"] if valkey else info["redis_version"])
    text = f"{'Valkey' if valkey else 'Redis'} {found} at {where}"
    if not valkey and int(found.partition(".")[0]) < ACL_SINCE:
        return Finding("server", WARNING, text, "from Redis 7.0 on (or any Valkey) deploy/users.acl works: upgrade it")
    return Finding("server", OK, text)


def eviction(policy: str, maxmemory: int) -> Finding:
    """Whether the server may throw parts of the log away."""
    if policy == "noeviction":
        return Finding("eviction", OK, "noeviction")
    level = BROKEN if maxmemory and policy.startswith("allkeys") else WARNING
    return Finding(
        "eviction",
        level,
        f"maxmemory-policy is {policy or 'not known'}: the server may drop parts of the log",
        "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
    )


def memory(info: Info) -> Finding:
    """Whether the server is about to refuse writes."""
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return Finding("server's memory", OK, f"{size(used)} used, no maxmemory")
    text = f"{size(used)} of {size(most)} used"
    if used < NEARLY_FULL * most:
        return Finding("server's memory", OK, text)
    return Finding(
        "server's memory",
        BROKEN if used >= FULL * most else WARNING,
        f"{text}: when it is full, every request is refused",
        "raise maxmemory, or archive the log so that it can be trimmed (`spoke audit archive`)",
    )


def persistence(info: Info, appendfsync: str = "") -> Finding:
    """Whether the log is on disk, and what a power failure loses. ``appendfsync`` is empty where it is not known."""
    if str(info.get("aof_enabled", "0")) != "1":
        return Finding(
            "persistence", WARNING, "appendonly is off: a restart of the server loses what is not in its last dump",
            "CONFIG SET appendonly yes, and in its configuration file",
        )  # fmt: skip
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status"):
        if info.get(field, "ok") != "ok":
            return Finding(
                "persistence", BROKEN, f"the server cannot write its log to disk ({field} is {info[field]})",
                "free space on its disk; its own log says more",
            )  # fmt: skip
    if appendfsync == "no":
        return Finding(
            "persistence", WARNING, "appendfsync is no: a power failure loses as much as the kernel had not written",
            "CONFIG SET appendfsync everysec (loses about a second) or always (nothing), and in its configuration file",
        )  # fmt: skip
    known = {"always": ", fsync always", "everysec": ", fsync every second: a power failure loses about one"}
    return Finding("persistence", OK, "appendonly is on" + known.get(appendfsync, ""))


def replication(info: Info) -> Finding:
    """Whether it is a primary, and how far its replicas are behind."""
    if info.get("role") == "slave":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return Finding("replicas", BROKEN, f"this is a replica of {primary}, and read-only", "give the primary's URL")
    count = int(info.get("connected_slaves", 0))
    if not count:
        return Finding("replicas", OK, "none: the log is on this one machine")
    behind = []
    for number in range(count):
        replica = info.get(f"slave{number}", {})
        lag_s = int(replica.get("lag", 0))
        missing = int(info.get("master_repl_offset", 0)) - int(replica.get("offset", 0))
        name = f"{replica.get('ip')}:{replica.get('port')}"
        if replica.get("state") != "online":
            behind.append(f"{name} is {replica.get('state')}")
        elif lag_s > REPLICA_LAG_S_MAX or missing > REPLICA_BYTES_MAX:
            behind.append(f"{name} is {lag_s} s and {size(max(0, missing))} behind")
    if behind:
        return Finding(
            "replicas", WARNING, f"{some(behind)}: a failover to it would lose that",
            "look at the network to it and at its log; min-replicas-to-write keeps the gap small",
        )  # fmt: skip
    return Finding("replicas", OK, f"{count} up to date")


def idle(timeout: str) -> Finding:
    """Whether the server hangs up on those who are silent."""
    if not timeout:
        return Finding(
            "idle connections", ABSENT, "not looked at: this user of the server may not ask for its settings"
        )
    if timeout != "0":
        return Finding(
            "idle connections",
            WARNING,
            f"the server closes connections that are silent for {timeout} s, as agents may be",
            "CONFIG SET timeout 0, and in its configuration file",
        )
    return Finding("idle connections", OK, "are left alone")


def skew(difference_s: float, round_trip_s: float) -> Finding:
    """How far this machine's clock is from the server's."""
    text = f"{difference_s:+.3f} s against the server (known to {round_trip_s / 2:.3f} s)"
    if abs(difference_s) - round_trip_s / 2 > SKEW_S_MAX:
        return Finding(
            "clock", WARNING, text, "run chrony or another NTP client; leases are safe, times in logs will mislead"
        )
    return Finding("clock", OK, text)
