"""The names of a pool's keys. All share one hash tag, so that a pool lives in one slot of a Redis Cluster."""

from __future__ import annotations

from dataclasses import dataclass

from spoke.events.model import check_name


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one pool."""

    pool: str

    def __post_init__(self) -> None:
        check_name("the pool's name", self.pool)

    def _key(self, tail: str) -> str:
        return f"spoke:{{{self.pool}}}:{tail}"

    @property
    def requests(self) -> str:
        """Stream: the inbox of the allocator."""
        return self._key("requests")

    @property
    def events(self) -> str:
        """Stream: the log."""
        return self._key("events")

    @property
    def leases(self) -> str:
        """Sorted set: lease holder to deadline, milliseconds of the server's clock."""
        return self._key("leases")

    @property
    def leader(self) -> str:
        """Hash: holder, epoch, deadline, cursor; the release and the protocol of the holder."""
        return self._key("leader")

    @property
    def snapshot(self) -> str:
        """Hash: a folded state and the id it stands at."""
        return self._key("snapshot")

    @property
    def nodes(self) -> str:
        """Hash: node id to a line of JSON for people."""
        return self._key("nodes")

    @property
    def tickets(self) -> str:
        """Hash: ticket id to a line of JSON for people."""
        return self._key("tickets")

    @property
    def queue(self) -> str:
        """Hash: the queue's policy, its length, the projects and the reservations, as JSON for people."""
        return self._key("queue")

    def ticket(self, ticket_id: str) -> str:
        """Hash: all of one ticket, field by field."""
        return self._key(f"ticket:{ticket_id}")

    def secret(self, ticket_id: str, owner: str = "") -> str:
        """String: the secret with which a ticket's members and clients know each other; by user, if signed."""
        return self._key(f"secret:{owner}:{ticket_id}" if owner else f"secret:{ticket_id}")

    def node(self, node_id: str) -> str:
        """Stream: orders to one agent."""
        return self._key(f"node:{node_id}")

    def reply(self, client_id: str) -> str:
        """Stream: replies and notices to one client."""
        return self._key(f"reply:{client_id}")

    def logs(self, node_id: str) -> str:
        """Stream: what readers ask an agent of its actors' output; deleted when read."""
        return self._key(f"logs:{node_id}")

    def logs_reply(self, reader: str, node_id: str) -> str:
        """Stream: one agent's last answer to one reader of output; expires within a minute."""
        return self._key(f"logs-reply:{reader}:{node_id}")


def client_lease(client_id: str) -> str:
    """The lease holder's name of a client."""
    return f"client:{client_id}"


def node_lease(node_id: str, incarnation: str) -> str:
    """The lease holder's name of one run of a node's agent."""
    return f"node:{node_id}:{incarnation}"
