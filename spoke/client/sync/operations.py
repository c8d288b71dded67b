"""What operators do through a client: nodes in and out of service, tickets forward and back in the line."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Literal

from spoke.client.sync.asking import Asking
from spoke.errors import InvalidRequest
from spoke.events.model import check_name
from spoke.protocol import requests as r
from spoke.protocol.explanation import Explanation


class Operations(Asking):
    """The operators' part of ``Client``. Where requests are signed, it needs the key of an operator or administrator.

    The futures fail with Forbidden, UnknownNode, UnknownTicket, TicketEnded, InvalidRequest, or as all requests do.
    """

    def cordon_node(self, node_id: str, reason: str = "") -> Future[bool]:
        """Place nothing new on a node; what runs there goes on. False if it was so already.

        It holds for the node's id until ``uncordon_node``, also when its agent starts anew.

        >>> client.cordon_node("node-1", "its fan rattles").result(), client.uncordon_node("node-1").result()
        (True, True)
        """
        return self._ask_whether(r.CordonNode(_node(node_id), _reason(reason)))

    def uncordon_node(self, node_id: str) -> Future[bool]:
        """Let a node have new slots again; a drain that is under way ends. False if nothing kept it from them.

        >>> client.uncordon_node("node-1").result()  # nothing kept it from new slots
        False
        """
        return self._ask_whether(r.UncordonNode(_node(node_id)))

    def drain_node(
        self, node_id: str, *, deadline: float | None = None, reason: str = "", wait: bool = True
    ) -> Future[bool]:
        """Cordon a node until its tickets have gone. After ``deadline`` seconds (None: never) they are released.

        The tickets' clients and actors are told at once (``Gang.on_notice``, ``Actor.on_notice``). The future is True
        once the node is drained, with ``wait=False`` once the drain has begun. It fails with NodeBusy if the drain is
        given up meanwhile.

        >>> client.drain_node("node-1", deadline=600, reason="new kernel", wait=False).result()
        True
        >>> client.uncordon_node("node-1").result()
        True
        """
        if deadline is not None and (type(deadline) not in (int, float) or not 0 <= deadline <= 365 * 86_400):
            raise InvalidRequest(f"deadline must be None or seconds from 0 up to a year, not {deadline!r}")
        deadline_ms = None if deadline is None else math.ceil(deadline * 1000)
        return self._ask_whether(r.DrainNode(_node(node_id), deadline_ms, _reason(reason), wait))

    def remove_node(self, node_id: str, *, force: bool = False, reason: str = "") -> Future[bool]:
        """Take a node out of the pool; its agent ends. The future is True once it is gone.

        It fails with NodeBusy if tickets hold places there; with ``force`` they are released first.

        >>> client.remove_node("node-7", reason="sold").result()
        Traceback (most recent call last):
        spoke.errors.UnknownNode: ...
        """
        return self._ask_whether(r.RemoveNode(_node(node_id), force, _reason(reason)))

    def mark_gpu(self, node_id: str, index: int, *, healthy: bool, reason: str = "") -> Future[bool]:
        """Mark one GPU of a node (by its physical index) unhealthy, so that it is not given out; or healthy again.

        Whoever holds it is told. What an operator has said stands until an operator says otherwise.

        >>> client.mark_gpu("node-1", 3, healthy=False, reason="smells of smoke").result()
        True
        >>> client.mark_gpu("node-1", 3, healthy=True).result()
        True
        """
        if type(index) is not int or index < 0:
            raise InvalidRequest(f"a GPU's index is a whole number from 0 on, not {index!r}")
        return self._ask_whether(r.MarkGpu(_node(node_id), index, healthy, _reason(reason)))

    def explain(self, ticket_id: str) -> Future[Explanation]:
        """Why a ticket waits, or is where it is: a sentence and a table; anybody may ask.

        >>> client.explain(gang.ticket_id).result().state
        'allocated'
        """
        check_name("the ticket id", ticket_id)
        return self._ask(r.ExplainGang(ticket_id), lambda message, ticket: message.explanation)

    def move_ticket(self, ticket_id: str, to: Literal["head", "tail"] = "head") -> Future[bool]:
        """Move a waiting ticket to the head or the tail of the line; to the tail its owner may, too.

        >>> client.move_ticket(waiting.pending_reason().ticket_id, "head").result()
        True
        """
        check_name("the ticket id", ticket_id)
        if to not in ("head", "tail"):
            raise InvalidRequest(f"a ticket is moved to 'head' or 'tail', not {to!r}")
        return self._ask_whether(r.MoveGang(ticket_id, to))


def _node(node_id: str) -> str:
    check_name("the node id", node_id)
    return node_id


def _reason(reason: str) -> str:
    if not isinstance(reason, str) or len(reason) > 500:
        raise InvalidRequest(f"a reason is a text of up to 500 characters, not {reason!r:.100}")
    return reason
