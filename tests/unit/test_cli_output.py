"""What the command line shows, from values: no server."""

from __future__ import annotations

import doctest
from pathlib import Path

import orjson
import pytest

from spoke.cli import moments, output
from spoke.cli.daemons import check_imports, parse_gpus
from spoke.cli.events import TYPE_WIDTH, event_document, event_line
from spoke.cli.options import parse_pairs
from spoke.cli.output import Prefixer
from spoke.cli.views import how_it_ended, needs, ticket_document
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.codec import encode_event
from spoke.events.model import GangSpec, Resources


def raw(event: e.Event) -> dict[bytes, bytes]:
    """The event as it comes from the stream."""
    fields = encode_event(event)
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}


def test_a_long_listing_looks_like_a_short_one(capsys: pytest.CaptureFixture[str]) -> None:
    columns, rows = ("ticket", ">GPU-hours", "a long name"), [("t-1", "1.00", "x"), ("t-22", "12.50", "job \x1b[2J")]
    output.tables(columns, rows, rows_max=3)
    short = capsys.readouterr().out
    output.tables(columns, rows, rows_max=2)
    assert capsys.readouterr().out == short
    for odd in ("w" * 300, "漢字"):  # is folded; takes two columns
        output.tables(columns, [*rows, ("t-3", "", odd)], rows_max=4)
        short = capsys.readouterr().out
        output.tables(columns, [*rows, ("t-3", "", odd)], rows_max=3)
        assert capsys.readouterr().out == short


@pytest.mark.parametrize("module", [moments, output])
def test_the_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_an_event_is_one_line_with_id_type_and_words() -> None:
    exited = e.ActorExited("t-1", 3, "worker", "node-0", -1, 9)
    line = event_line("1764000000000-2", raw(exited))
    assert line.startswith("1764000000000-2  ")
    assert line.endswith(f"{'actor.exited':{TYPE_WIDTH}}  t-1 rank 3 worker on node-0: signal 9")


def test_the_line_of_a_gang_says_its_share_and_the_models_it_wants() -> None:
    spec = GangSpec(1, 2, Resources(gpus=0.25), strict_pack=False, gpu_models=("H100", "A100"))
    line = event_line("5-0", raw(e.GangQueued("t-1", "c", 1, spec, 0, "no room")))
    assert "1x2 actors with 0.25 GPU, dense, on H100 or A100 for c" in line


def test_an_unknown_event_is_shown_as_it_stands() -> None:
    fields = {b"type": b"node.exploded", b"v": b"7", b"node_id": b"node-0"}
    assert event_line("5-0", fields).endswith("v=7 node_id=node-0")
    document = event_document("5-0", fields)
    assert (document["type"], document["node_id"]) == ("node.exploded", "node-0")
    assert "unknown type" in document["problem"]


def test_nothing_in_an_event_steers_the_terminal() -> None:
    lost = e.NodeLost("node-0", "gone\x1b[2J\nnode.registered forged")
    line = event_line("5-0", raw(lost))
    assert line.isprintable()
    assert "\\x1b[2J\\n" in line


def test_every_event_type_is_known_to_the_log() -> None:
    from spoke.cli.events import _WORDS

    assert set(_WORDS) == set(e.EVENT_TYPES.values())


def test_an_event_as_json_has_its_fields_typed() -> None:
    document = event_document("7-1", raw(e.ActorStarted("t-1", 0, "a", "node-0", 4711, "")))
    assert document["id"] == "7-1"
    assert document["ms"] == 7
    assert document["pid"] == 4711


@pytest.mark.parametrize("text", ["yesterday", "", "12:00", "1-2-3", "99999999999999999999"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="neither an event's id"):
        moments.last_id_at(text)


def test_a_moment_may_be_a_span_of_time_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 3_600.0)
    assert moments.last_id_at("10m") == moments.last_id_at("10m ago") == str(50 * 60_000)
    assert moments.id_before("1h") == f"0-{2**64 - 1}"
    assert moments.last_id_at("10") == "10", "what has no unit is an event's id"


def test_a_module_that_is_not_there_is_told_before_the_first_launch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_workers.py").touch()
    check_imports(["my_workers", "my_workers.py", "json.decoder"])
    assert capsys.readouterr().err == ""
    check_imports(["my_worker"])
    assert "there is no module 'my_worker' in" in capsys.readouterr().err


def test_prefixes_are_aligned_and_coloured_only_on_request() -> None:
    assert Prefixer(range(12), colours=False).line(3, b"x") == b"[ 3] x\n"
    assert Prefixer([0], colours=True).line(0, b"x").startswith(b"\x1b[36m[0]\x1b[0m ")


def test_a_tickets_ranks_come_in_order_and_an_ended_one_runs_no_more() -> None:
    fields = {b"state": b"ended", b"name": b"7", b"nodes": b'["n"]'}
    for rank in (10, 2):
        fields[f"rank.{rank}".encode()] = orjson.dumps({"node": "n", "state": "running", "actor": "a"})
    document = ticket_document("t-1", fields)
    assert [row["rank"] for row in document["ranks"]] == [2, 10]
    assert {row["state"] for row in document["ranks"]} == {"ended"}
    assert (document["name"], document["nodes"]) == ("7", ["n"])


def test_ends_and_needs_in_words() -> None:
    assert how_it_ended({"state": "running"}) == ""
    assert how_it_ended({"state": "exited", "code": 3, "signal": 0}) == "code 3"
    assert how_it_ended({"state": "exited", "code": -1, "signal": 15}) == "signal 15"
    assert how_it_ended({"state": "lost", "reason": "node gone"}) == "node gone"
    assert needs(2, 1.5, 1 << 30) == "2 GPUs, 1.5 CPU, 1 GiB"
    assert needs(0, 0, 0) == "nothing"


def test_options_that_cannot_be_read_are_refused() -> None:
    assert parse_gpus("auto") == "auto"
    assert parse_gpus("8") == 8
    for text in ("-1", "many", "", "1.5", "٣"):
        with pytest.raises(InvalidRequest, match="--gpus"):
            parse_gpus(text)
    assert parse_pairs("--label", ["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for pair in ("a", "=b"):
        with pytest.raises(InvalidRequest, match="NAME=VALUE"):
            parse_pairs("--label", [pair])


def test_garbage_in_the_inbox_reads_as_what_it_is() -> None:
    line = event_line("5-0", raw(e.RequestRefused("", 0, "", "unknown_request", "there is no request ''")))
    assert "something that is no request of somebody who does not say who (unknown_request)" in line


def test_a_narrow_terminal_gets_fewer_columns_and_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("ticket", "client", "reason")
    rows = [("t-300006", "c-ca6f1f739b123581", "needs 2 nodes with 4 GPUs free; 0 of 2 nodes qualify")]

    def shown(width: int, terminal: bool) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
        output.table(columns, rows, spare=("client",))
        return capsys.readouterr().out

    assert "not shown" not in shown(60, terminal=True)
    narrow = shown(40, terminal=True)
    assert "t-300006" in narrow
    assert "c-ca6f" not in narrow
    assert "not shown on a terminal this narrow: client" in narrow
    assert "client" in shown(40, terminal=False), "what programs read has all columns"
