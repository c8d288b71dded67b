"""Which nodes carry labels that say where they stand (rack, block, zone). It follows from the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from spoke.events.rules import DOMAINS


class DomainIndex:
    """How many nodes carry each of the labels in ``DOMAINS``, so that pools without them pay nothing for them."""

    __slots__ = ("_count", "_labels", "levels")

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._count: Counter[str] = Counter()
        self.levels: tuple[str, ...] = ()
        """Those of the labels that any node carries, the narrowest first."""

    def put(self, node_id: str, labels: Mapping[str, str]) -> None:
        """Enter a node, or what its labels have become."""
        known = self._labels.get(node_id)
        if known is labels:
            return
        self.drop(node_id)
        self._labels[node_id] = labels
        self._count.update(key for key in DOMAINS if key in labels)
        self._look()

    def drop(self, node_id: str) -> None:
        """Take a node out; nothing happens if it is not in."""
        known = self._labels.pop(node_id, None)
        if known is not None:
            self._count.subtract(key for key in DOMAINS if key in known)
            self._look()

    def _look(self) -> None:
        self.levels = tuple(key for key in DOMAINS if self._count[key] > 0)
