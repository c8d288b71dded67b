"""What an operator does from a live view: a sentence to confirm, and the request itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActionKind = Literal["drain", "uncordon", "release"]
ANSWER_S = 30.0
RELEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Action:
    """Something to be done to a node (drain, uncordon) or to a ticket (release)."""

    kind: ActionKind
    target: str

    @property
    def question(self) -> str:
        """What to ask before it is done."""
        return {
            "drain": f"Drain node {self.target}? Nothing new is placed there, and its tickets are told to go.",
            "uncordon": f"Let node {self.target} have new slots again?",
            "release": f"Release ticket {self.target}? Its actors are stopped, whoever owns them.",
        }[self.kind]


def perform(action: Action, url: str | None, pool: str | None) -> str:
    """Do it through a client of its own, and say what came of it; raises SpokeError.

    A drain goes on after this returns; a release has ended.
    """
    import spoke

    with spoke.Client(url, pool=pool) as client:
        if action.kind == "drain":
            client.drain_node(action.target, wait=False).result(ANSWER_S)
            return f"{action.target} is being drained"
        if action.kind == "uncordon":
            changed = client.uncordon_node(action.target).result(ANSWER_S)
            return f"{action.target} takes new slots again" if changed else f"{action.target} was not cordoned"
        released = client.gang_release(action.target, timeout=RELEASE_S).result(RELEASE_S + ANSWER_S)
        return f"{action.target} is released" if released else f"{action.target} had ended before"
