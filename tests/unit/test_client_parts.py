"""The client's small parts: launch plans, upkeep, status rows, futures, and the package's public names."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest

import spoke
from spoke.client import plans
from spoke.client.futures import Chain
from spoke.client.plans import Way
from spoke.client.status import NodeStatus, _rows
from spoke.client.upkeep import Upkeep
from spoke.errors import InvalidRequest, LimitExceeded, MalformedData, NotSerializable, RankOutOfRange
from spoke.events.model import ActorSpec, GangSpec
from spoke.events.supervision import Supervision
from spoke.protocol.launch import decode_blob, unpack_blobs
from spoke.transport import unpack
from tests.fakes import slots_of

SLOTS = slots_of(GangSpec(2, 2))
SECRET = b"s" * 32


# --- launch plans ------------------------------------------------------------------------------------------------


def test_one_actors_blob_carries_its_arguments_secret_and_environment() -> None:
    members, blobs = plans.actor_plan(2, "T", "a", {"x": [1, 2]}, Way({"K": "v"}))(SLOTS, SECRET)
    (raw,) = unpack_blobs(blobs, 1)
    blob = decode_blob(raw)
    assert [(member.rank, member.actor_id) for member in members] == [(2, "a")]
    assert (unpack(blob.args), blob.secret, blob.env) == ({"x": [1, 2]}, SECRET, {"K": "v"})


def test_arguments_may_be_a_function_of_the_slot() -> None:
    members, blobs = plans.gang_plan("T", lambda slot: {"rank": slot.global_rank}, None, Way())(SLOTS, SECRET)
    found = [unpack(decode_blob(raw).args) for raw in unpack_blobs(blobs, 4)]
    assert found == [{"rank": rank} for rank in range(4)]
    assert [member.actor_id for member in members] == ["T-0", "T-1", "T-2", "T-3"]


def test_shared_arguments_are_sent_once() -> None:
    _, blobs = plans.gang_plan("T", {"x": 1}, lambda slot: f"w{slot.global_rank}", Way())(SLOTS, SECRET)
    assert len(set(unpack_blobs(blobs, 4))) == 1
    assert len(blobs) < 200


def test_ids_must_be_one_for_each_rank() -> None:
    with pytest.raises(InvalidRequest, match="3 actor ids were given for 4 ranks"):
        plans.gang_plan("T", None, ["a", "b", "c"], Way())(SLOTS, SECRET)


@pytest.mark.parametrize("rank", [4, -1, 10**9])
def test_a_rank_that_the_gang_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(RankOutOfRange, match="ranks 0 to 3"):
        plans.actor_plan(rank, "T", "a", None, Way())(SLOTS, SECRET)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"x": object()}, NotSerializable),
        ({1: "x"}, InvalidRequest),
        ([1, 2], InvalidRequest),
    ],
)
def test_arguments_that_are_no_data_are_refused_before_anything_is_sent(args: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        plans.actor_plan(0, "T", "a", args, Way())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "x" * 10_000_000, "a\n", "\x00", "ä", None, 7])
def test_unusable_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidRequest):
        plans.actor_plan(0, "T", name, None, Way())  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        plans.actor_plan(0, name, "a", None, Way())  # type: ignore[arg-type]


@pytest.mark.parametrize("argv", [[], "ls -l", [""], ["a\0b"], [7], ["\ud800"], ["x" * (2 << 20)]])
def test_unusable_commands_are_refused(argv: object) -> None:
    with pytest.raises(InvalidRequest):
        plans.command_plan(argv, Way())  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": 1}, {"A": "\0"}])
def test_unusable_environments_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        plans.command_plan(["ls"], Way(env))


def test_too_large_arguments_are_refused_with_advice() -> None:
    plan = plans.actor_plan(0, "T", "a", {"x": b"0" * (17 << 20)}, Way())
    with pytest.raises(LimitExceeded, match="pass large data in a call"):
        plan(SLOTS, SECRET)


# --- upkeep ------------------------------------------------------------------------------------------------------


def test_upkeep_does_timers_in_their_order_and_survives_errors() -> None:
    upkeep, done, order = Upkeep("test"), threading.Event(), []
    upkeep.start()
    upkeep.later(0.05, lambda: (order.append("late"), done.set()))  # type: ignore[arg-type, return-value]
    upkeep.later(0.01, lambda: order.append("early"))
    upkeep.later(0.02, lambda: order.append("never")).cancel()
    upkeep.soon(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert done.wait(5)
    upkeep.stop()
    upkeep.thread.join(5)
    assert not upkeep.thread.is_alive()
    assert order == ["early", "late"]


def test_upkeep_forgets_timers_that_were_cancelled() -> None:
    upkeep = Upkeep("test")
    for _ in range(5_000):
        upkeep.later(3_600, lambda: None).cancel()
    upkeep.soon(upkeep.stop)
    upkeep.start()
    upkeep.thread.join(5)
    assert len(upkeep._timers) < 2_000


# --- status ------------------------------------------------------------------------------------------------------


def test_status_rows_ignore_fields_of_newer_releases() -> None:
    rows = {b"n1": b'{"state":"up","gpus":2,"gpus_free":[1],"colour":"red"}'}
    assert _rows(NodeStatus, "node_id", rows) == [NodeStatus("n1", "up", 2, (1,))]


def test_status_rows_that_are_garbage_name_the_row() -> None:
    with pytest.raises(MalformedData, match="n1"):
        _rows(NodeStatus, "node_id", {b"n1": b"{"})


# --- chains ------------------------------------------------------------------------------------------------------


def test_cancelling_a_chain_cancels_the_step_under_way() -> None:
    chain: Chain[int] = Chain()
    step: Future[int] = Future()
    chain.follow(step, lambda done: None)
    assert chain.cancel()
    assert step.cancelled()
    assert not chain.finish(1)


# --- the package -------------------------------------------------------------------------------------------------


def test_every_public_name_can_be_had() -> None:
    for name in spoke.__all__:
        assert getattr(spoke, name) is not None
    assert set(spoke.__all__) <= set(dir(spoke))
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        spoke.Clinet  # noqa: B018


def test_what_type_checkers_see_is_what_there_is() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(spoke.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names >= set(spoke.__all__) - {"__version__"}


def test_an_actor_does_not_pay_for_the_client() -> None:
    code = "import sys, spoke; spoke.Actor, spoke.register_actor; print(*({'redis', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_how_members_are_looked_after_may_be_said_by_group() -> None:
    care = {"b": Supervision(start_timeout_s=3.0)}
    plan = plans.command_plan({"a": ["x"], "b": ["y"]}, Way(supervision=care))
    assert plan.by_group == {"a": ActorSpec(argv=("x",)), "b": ActorSpec(argv=("y",), supervision=care["b"])}
    with pytest.raises(InvalidRequest, match="names at least one group"):
        plans.command_plan({}, Way())
