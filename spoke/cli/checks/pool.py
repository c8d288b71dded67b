"""What ``spoke doctor`` makes of a pool: its allocator, the inbox, the agents and their releases, the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from spoke.cli.checks.finding import ABSENT, BROKEN, OK, WARNING, Finding, some
from spoke.cli.output import age, count
from spoke.events.ids import ms_of, order_of
from spoke.events.moments import moment
from spoke.protocol.version import PROTOCOL
from spoke.version import release_version

if TYPE_CHECKING:
    from spoke.client.status import NodeStatus

INBOX_WAIT_MS_MAX: Final = 5_000
LEASE_LEFT_MS_MIN: Final = 1_000
KEPT_EVENTS_MAX: Final = 3_000_000
"""The allocator keeps two million; more stay only when something holds the trimming up."""
SNAPSHOT_DUE: Final = 100_000
"""A snapshot is written every 20,000 events."""
ARCHIVE_AGE_MS_MAX: Final = 26 * 3_600_000
"""A daily timer, and two hours for it."""


def allocator(leader: Mapping[str, str], now_ms: float, pool: str) -> Finding:
    """Whether somebody decides. ``leader`` is the hash of that name; times are the server's."""
    start = f"start one: spoke allocator --pool {pool}"
    if not leader.get("holder"):
        return Finding("allocator", WARNING, f"pool {pool} never had one", start)
    left_ms = float(leader.get("deadline", 0)) - now_ms
    name = f"{leader['holder']}, epoch {leader.get('epoch', '?')}"
    if float(leader.get("deadline", 0)) == 0:
        return Finding("allocator", BROKEN, f"{name} has resigned, and none has taken over", start)
    if left_ms < 0:
        text = f"{name} has been silent for {age(-left_ms / 1000)} beyond its time, and none has taken over"
        return Finding("allocator", BROKEN, text, start)
    return Finding("allocator", OK, f"{name}, leads for {left_ms / 1000:.1f} s more and renews it before")


def inbox(length: int, newest: str, cursor: str, now_ms: float) -> Finding:
    """Whether requests wait. ``newest`` is the id of the newest one, ``cursor`` up to where they are decided."""
    waits = newest and order_of(newest) > order_of(cursor or "0-0")
    if waits and now_ms - ms_of(newest) > INBOX_WAIT_MS_MAX:
        text = f"{count(length, 'request')} undecided, the newest for {age((now_ms - ms_of(newest)) / 1000)}"
        return Finding("inbox", WARNING, text, "see whether an allocator runs, and what its log says")
    return Finding("inbox", OK, "what was asked is decided" if not waits else "requests come in, and are read")


def agents(nodes: Sequence[NodeStatus], leases: Mapping[str, float], now_ms: float, pool: str) -> Finding:
    """Whether the nodes are alive: each agent that is up holds a lease, in the server's milliseconds."""
    if not nodes:
        start = f"start an agent: spoke agent --pool {pool} --gpus auto"
        return Finding("agents", ABSENT, f"no node is registered in pool {pool}", start)
    left: dict[str, float] = {}
    for holder, deadline in leases.items():
        kind, _, rest = holder.partition(":")
        if kind == "node":
            node_id = rest.rpartition(":")[0]
            left[node_id] = max(left.get(node_id, -1e18), deadline - now_ms)
    lost = [node.node_id for node in nodes if node.state == "lost"]
    alive = [node.node_id for node in nodes if node.state != "lost"]
    silent = [node_id for node_id in alive if left.get(node_id, -1) < 0]
    late = [node_id for node_id in alive if 0 <= left.get(node_id, -1) < LEASE_LEFT_MS_MIN]
    troubles = []
    if lost:
        troubles.append(f"lost: {some(lost)}")
    if silent:
        troubles.append(f"without a lease, though not yet counted as lost: {some(silent)}")
    if late:
        troubles.append(f"less than {LEASE_LEFT_MS_MIN / 1000:g} s before the end of their lease: {some(late)}")
    if troubles:
        remedy = "look at the agent's log there and at the network; start it again, or `spoke node remove` the node"
        if late and not lost and not silent:
            remedy = "look at the network and the load there, or give the agent a longer --lease"
        return Finding("agents", WARNING, "; ".join(troubles), remedy)
    shortest = min((left[node_id], node_id) for node_id in alive)
    text = f"{count(len(alive), 'node')} with leases; {shortest[1]} has the shortest, {shortest[0] / 1000:.1f} s"
    return Finding("agents", OK, text)


def releases(nodes: Sequence[NodeStatus], leader: Mapping[str, str], own: str | None = None) -> Finding:
    """Whether agents, allocator and this machine speak the same protocol, and are of the same release of Spoke."""
    here = (own or release_version(), PROTOCOL)
    found: dict[tuple[str, int], list[str]] = {}
    if leader.get("holder"):
        said = leader.get("protocol", "")
        found[leader.get("release") or "not told", int(said) if said.isdigit() else 0] = ["the allocator"]
    for node in nodes:
        found.setdefault((node.version or "not told", node.protocol), []).append(node.node_id)
    if set(found) <= {here}:
        where = " and everywhere in the pool" if found else ""
        return Finding("releases", OK, f"{here[0]} here{where}, protocol {PROTOCOL}")
    text = "; ".join(f"{_release(*one)} on {some(names, 3)}" for one, names in sorted(found.items()))
    strangers = any(protocol not in (0, PROTOCOL) for _, protocol in found)
    remedy = "bring all to one release, agents after the allocator"
    if strangers:
        remedy += "; the allocator takes in nobody who speaks another version of the protocol than it does"
    return Finding("releases", BROKEN if strangers else WARNING, f"{_release(*here)} here; {text}", remedy)


def _release(release: str, protocol: int) -> str:
    return f"{release} (protocol {protocol})" if protocol else release


def log(
    length: int, first: str, last: str, snapshot: str, archived: str, strays: Sequence[str] = (), blocked: str = ""
) -> Finding:
    """Whether the log is whole, has its snapshot, and does not grow for ever. All but the length are ids, or empty.

    ``strays``: entries that no allocator wrote. ``blocked``: why no allocator can take up the log, with what to do.
    """
    if blocked:
        return Finding("log", BROKEN, "no allocator can go on with it", blocked)
    if last == "0-0":
        if snapshot:
            text = f"the log is empty, and the snapshot stands at {snapshot}: the server has lost its data"
            return Finding("log", BROKEN, text, "restore its append-only file, or `spoke audit restore` an archive")
        return Finding("log", OK, "empty")
    if strays:
        text = f"it holds what no allocator wrote: {some(list(strays))}"
        return Finding("log", WARNING, text, "the allocator that next takes it up takes that out, and records it")
    text = f"{count(length, 'event')} since {moment(ms_of(first))}"
    text += f"; snapshot at {snapshot}" if snapshot else "; no snapshot yet"
    behind_ms = ms_of(last) - ms_of(archived) if archived else 0
    if archived:
        text += f"; archived up to {moment(ms_of(archived))}"
    if archived and (behind_ms > ARCHIVE_AGE_MS_MAX or length > KEPT_EVENTS_MAX):
        remedy = "run `spoke audit archive DIR` from a timer: what is not archived is not trimmed"
        return Finding("log", WARNING, f"{text}, which is {age(behind_ms / 1000)} behind", remedy)
    if (length > SNAPSHOT_DUE and not snapshot) or length > KEPT_EVENTS_MAX:
        return Finding("log", WARNING, f"{text}: it should have been trimmed", "look at the allocator's log")
    return Finding("log", OK, text)
