"""The dashboard's server: boards and changes, the past, what it refuses, and its security headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from spoke.cli.sight.actions import Action
from spoke.cli.sight.board import Board, NodeRow, board_of
from spoke.cli.sight.changes import changes
from spoke.cli.sight.lines import COLOURS, LETTERS
from spoke.cli.sight.site import HEADERS, STATIC, Site
from spoke.cli.sight.tails import News
from spoke.cli.web import read_token
from spoke.errors import InvalidRequest, ServerUnreachable, UnknownTicket
from spoke.protocol.explanation import Explanation
from tests.golden import first_hours

TOKEN = "0123456789-abcdef-0123456789"
GOOD = {"Authorization": f"Bearer {TOKEN}"}


class Shown:
    def __init__(self) -> None:
        self.board = board_of(first_hours().state, "p")


class Remembered:
    """A past of one moment."""

    def span(self) -> tuple[int, int]:
        return 1_000, 9_000

    def board_at(self, ms: int) -> Board:
        if ms < 1_000:
            raise ServerUnreachable("no server answers at redis://x")
        return Board("p", now_ms=ms)

    def explain(self, ticket_id: str, ms: int | None) -> Explanation:
        if ticket_id != "t-4":
            raise UnknownTicket(f"nothing is known of {ticket_id}")
        return Explanation(ticket_id, "allocated", f"at {ms}")


@pytest.fixture
def done() -> list[Action]:
    return []


@pytest.fixture
def web(done: list[Action]) -> Iterator[TestClient]:
    def act(action: Action) -> str:
        done.append(action)
        return "done"

    site = Site(Shown(), Remembered(), act, TOKEN)
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        yield client


def read_only() -> TestClient:
    return TestClient(Site(Shown(), Remembered(), lambda action: "done").app(), base_url="http://127.0.0.1")


# --- reading -----------------------------------------------------------------------------------------------------


def test_the_board_is_all_of_the_pool(web: TestClient) -> None:
    found = web.get("/api/board").json()
    assert found["head"]["pool"] == "p"
    (node,) = found["nodes"]["set"]
    assert node["gpus"][0] == {"kind": "held", "ticket": "t-4"}
    assert [one["key"] for one in found["tickets"]["set"]] == ["t-4"]


def test_a_moment_of_the_past_and_an_explanation(web: TestClient) -> None:
    assert web.get("/api/board?at=5000").json() == {"head": {**changes(None, Board("p", now_ms=5000))["head"]}}
    assert web.get("/api/span").json() == {"first_ms": 1_000, "last_ms": 9_000}
    assert web.get("/api/explain/t-4").json()["sentence"] == "at None"
    assert web.get("/api/explain/t-4?at=7").json()["sentence"] == "at 7"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/board?at=yesterday", 400, "no moment"),
        ("/api/board?at=-1", 400, "no moment"),
        ("/api/board?at=1", 503, "no server answers"),
        ("/api/explain/t-9", 404, "nothing is known of t-9"),
    ],
)
def test_errors_are_words_for_people(web: TestClient, path: str, status: int, said: str) -> None:
    answer = web.get(path)
    assert answer.status_code == status
    assert said in answer.json()["error"]


# --- output ------------------------------------------------------------------------------------------------------


def told_output(ticket_id: str, rank: int | None) -> Iterator[News]:
    if ticket_id == "t-9":
        raise UnknownTicket("nothing is known of t-9")
    yield News(((0, "hello"), (1, "<b>you</b>")), ("rank 2 is lost",))
    yield News()
    yield News(((rank or 0, "end"),))


def test_output_is_a_stream_of_lines_and_notes_that_ends() -> None:
    site = Site(Shown(), Remembered(), tails=told_output)
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        assert client.get("/api/about").json()["logs"] is True
        answer = client.get("/api/logs/t-1?rank=7")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.text.split("\n\n")[:-1] == [
            'event: note\ndata: "rank 2 is lost"',
            'event: lines\ndata: [[0,"hello"],[1,"<b>you</b>"]]',
            ": nothing new",
            'event: lines\ndata: [[7,"end"]]',
            'event: end\ndata: "the actors have ended"',
        ]
        assert 'event: end\ndata: "nothing is known of t-9"' in client.get("/api/logs/t-9").text
        assert client.get("/api/logs/t-1?rank=-1").status_code == 400


def test_a_dashboard_without_logs_shows_none(web: TestClient) -> None:
    assert web.get("/api/about").json()["logs"] is False
    answer = web.get("/api/logs/t-1")
    assert answer.status_code == 403
    assert "--logs" in answer.json()["error"]


# --- what is safe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/static/spoke.js", "/api/board", "/api/explain/t-9", "/nowhere"])
def test_every_answer_has_the_security_headers(web: TestClient, path: str) -> None:
    headers = web.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")


def test_the_page_has_nothing_inline_and_asks_nobody_else() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script[^>]*>[^<]", page) == []
    assert re.search(r"\son\w+=|\sstyle=|<style", page) is None
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in text
        assert re.search(r"https?://", text) is None, path
        assert "innerHTML" not in text


def test_letters_and_colours_are_those_of_the_terminal() -> None:
    script, style = (STATIC / "draw.js").read_text(), (STATIC / "spoke.css").read_text()
    assert f'"{LETTERS}"' in script
    assert f"COLOURS = {len(COLOURS)};" in script
    for number in range(len(COLOURS)):
        assert f".c{number} {{" in style


def test_a_page_of_another_name_cannot_read_it(web: TestClient) -> None:
    """DNS rebinding: a stranger's page whose name was made to point here."""
    assert web.get("/api/board", headers={"Host": "evil.example"}).status_code == 400


def test_without_a_token_nothing_can_be_changed() -> None:
    web = read_only()
    assert web.get("/api/about").json()["read_only"] is True
    answer = web.post("/api/release/t-4", headers=GOOD)
    assert (answer.status_code, "--token-file" in answer.json()["error"]) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"token={TOKEN}"},
    ],
)
def test_a_wrong_token_changes_nothing(web: TestClient, done: list[Action], headers: dict[str, str]) -> None:
    assert web.post("/api/release/t-4", headers=headers).status_code == 401
    assert done == []


def test_with_the_token_it_is_done(web: TestClient, done: list[Action]) -> None:
    assert web.post("/api/release/t-4", headers=GOOD).json() == {"done": "done"}
    assert web.post("/api/drain/n1", headers=GOOD).status_code == 200
    assert web.post("/api/remove/n1", headers=GOOD).status_code == 404
    assert web.get("/api/release/t-4", headers=GOOD).status_code in (404, 405)
    assert done == [Action("release", "t-4"), Action("drain", "n1")]


def test_a_token_that_is_easy_to_guess_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    with pytest.raises(InvalidRequest, match="at least 16"):
        read_token(path)
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN


# --- changes -----------------------------------------------------------------------------------------------------


def applied(shown: dict[str, dict[str, object]], message: dict[str, dict[str, list[object]]]) -> None:
    """What the page does with a message."""
    for name, section in message.items():
        if name != "head":
            rows = shown.setdefault(name, {})
            rows.update({one["key"]: one for one in section["set"]})  # type: ignore[index]
            for key in section["drop"]:
                del rows[key]  # type: ignore[arg-type]


def plain(message: object) -> dict[str, dict[str, list[object]]]:
    return orjson.loads(orjson.dumps(message))


BOARDS = st.lists(
    st.dictionaries(st.sampled_from(["n1", "n2", "n3"]), st.sampled_from(["up", "lost", "drained"])).map(
        lambda found: Board(
            "p", nodes=tuple(NodeRow(k, s, (), 0, 1.0, 1.0, 1, 1, (), "h") for k, s in sorted(found.items()))
        )
    ),
    min_size=1,
    max_size=6,
)


@given(BOARDS)
def test_changes_one_after_the_other_give_the_whole_board(boards: list[Board]) -> None:
    shown: dict[str, dict[str, object]] = {}
    whole: dict[str, dict[str, object]] = {}
    before = None
    for board in boards:
        applied(shown, plain(changes(before, board)))
        before = board
    applied(whole, plain(changes(None, boards[-1])))
    assert shown.get("nodes", {}) == whole.get("nodes", {})


def test_what_stays_is_not_sent_again() -> None:
    board = board_of(first_hours().state, "p")
    assert list(changes(board, replace(board, now_ms=1))) == ["head"]
