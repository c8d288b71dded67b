"""What a node may have for labels: checked where it registers, so that the log and its readers are spared the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spoke.allocator.decide import decide
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.rules import LABEL_VALUE_MAX, LABELS_MAX, Rules
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from tests.builders import node_spec

ODD_KEYS = ["", "a=b", "a b", "a\nb", "\x1b[31m", "k" * 201]


def registered(labels: dict[str, str]) -> e.Event:
    spec = replace(node_spec("n0", 1), labels=labels)
    (event,) = decide(PoolState(), r.Envelope(r.RegisterNode(spec, 5_000), node_id="n0", incarnation="i"), 0)
    return event


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"k" * 200: ""},
        {"rack": "v" * LABEL_VALUE_MAX},
        {"topology.kubernetes.io/zone": "eu-1 b", "größe": "a=b"},
        {f"l{n}": "x" for n in range(LABELS_MAX)},
    ],
)
def test_a_node_registers_with_its_labels(labels: dict[str, str]) -> None:
    event = registered(labels)
    assert isinstance(event, e.NodeRegistered)
    assert event.spec.labels == labels


@pytest.mark.parametrize(
    "labels",
    [
        *({key: "r1"} for key in ODD_KEYS),
        {"rack": "a\nb"},
        {"rack": "*"},
        {"rack": "v" * (LABEL_VALUE_MAX + 1)},
        {f"l{n}": "x" for n in range(LABELS_MAX + 1)},
    ],
)
def test_a_node_with_other_labels_is_refused_in_words(labels: dict[str, str]) -> None:
    event = registered(labels)
    assert isinstance(event, e.RequestRefused)
    assert event.code == InvalidRequest.code
    assert "node n0" in event.reason
    assert event.reason.isprintable()


@pytest.mark.parametrize("key", ODD_KEYS)
def test_nobody_asks_for_a_label_that_no_node_can_have(key: str) -> None:
    with pytest.raises(InvalidRequest, match="a label's key is printable text"):
        Rules(where={key: "r1"})
