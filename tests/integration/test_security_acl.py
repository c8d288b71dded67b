"""deploy/users.acl on a real server: a whole gang runs under its users, and what is forbidden is refused."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rx
from typer.testing import CliRunner

import spoke
from spoke.cli.main import app
from spoke.errors import AuthenticationFailed, ServerUnsuitable
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.servers import Process

ACL = Path(__file__).resolve().parents[2] / "deploy" / "users.acl"
USERS = ("allocator", "agent", "client", "operator", "auditor")
T_S = 40


class Users:
    """A server with the users of the file, each with a password of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.passwords = {user: f"pw-of-{user}-{port}" for user in USERS}

    def url(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    directory = tmp_path_factory.mktemp("acl")
    process = Process(directory / "server", "--aclfile", str(directory / "users.acl"))
    found, text = Users(process.port), ACL.read_text()
    for user, password in found.passwords.items():
        assert f"user {user} off " in text, "nobody can log in before a password is set"
        text = text.replace(f"user {user} off ", f"user {user} on >{password} ")
    (directory / "users.acl").write_text(text)
    with process:
        yield found


@pytest.fixture
def logged_in(users: Users) -> Iterator[dict[str, Redis]]:
    with contextlib.ExitStack() as stack:
        yield {user: stack.enter_context(contextlib.closing(connect(users.url(user)))) for user in USERS}


def test_nobody_enters_without_a_password(users: Users) -> None:
    with pytest.raises(AuthenticationFailed):
        spoke.Client(f"redis://127.0.0.1:{users.port}")


def test_a_gang_runs_under_these_users_and_an_auditor_checks_it(users: Users, pool: str, tmp_path: Path) -> None:
    with Daemons(tmp_path, pool) as daemons:
        daemons.allocator(users.url("allocator"))
        daemons.agent(users.url("agent"), "n1", gpus=4)
        with spoke.Client(users.url("client"), pool=pool) as client:
            eventually(lambda: any(node.state == "up" for node in client.status().nodes), "a node", T_S)
            gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1)).result(T_S)
            ended = gang.launch_command([sys.executable, "-c", "print('hello')"]).result(T_S)
            assert len(ended) == 2
            assert all(end.ok for end in gang.wait(T_S).result(T_S))
            for user in ("client", "operator"):
                logs = ["logs", gang.ticket_id, "--rank", "1", "--url", users.url(user), "--pool", pool]
                shown = CliRunner().invoke(app, logs)
                assert (shown.exit_code, shown.stdout) == (0, "hello\n"), shown.output
            assert gang.release().result(T_S)
        with spoke.Client(users.url("operator"), pool=pool) as operator:
            assert operator.drain_node("n1").result(T_S)
        for user in ("operator", "auditor"):
            told = CliRunner().invoke(app, ["explain", gang.ticket_id, "--url", users.url(user), "--pool", pool])
            assert f"{gang.ticket_id} was released" in told.output
        with contextlib.closing(connect(users.url("auditor"))) as auditor:
            keys = Keys(pool)
            report = verify(EventLog(auditor, keys.events, keys.snapshot))
            assert report.problems == []
            assert report.counts["actor.exited"] == 2
    assert "NOPERM" not in daemons.said()


FORBIDDEN: list[tuple[str, tuple[Any, ...]]] = [
    # a client asks, and reads what it is told
    ("client", ("XADD", "events", "*", "type", "gang.allocated")),
    ("client", ("XTRIM", "events", "MAXLEN", "0")),
    ("client", ("DEL", "events")),
    ("client", ("XRANGE", "events", "-", "+")),
    ("client", ("XRANGE", "requests", "-", "+")),
    ("client", ("XREAD", "STREAMS", "requests", "0")),
    ("client", ("XADD", "reply:c-1", "*", "type", "done")),
    ("client", ("XADD", "node:n1", "*", "type", "actor.start")),
    ("client", ("XREAD", "STREAMS", "node:n1", "0")),
    ("client", ("XREAD", "STREAMS", "logs:n1", "0")),
    ("client", ("XADD", "logs-reply:r-1:n1", "*", "seq", "1")),
    ("client", ("HSET", "leader", "holder", "me")),
    ("client", ("HSET", "tickets", "t-1", "{}")),
    ("client", ("HSET", "snapshot", "state", "x")),
    ("client", ("HGET", "snapshot", "state")),
    ("client", ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'type', 'x')", "1", "events")),
    # where it may write, it may not put something else in the place of what others need
    ("client", ("SET", "requests", "x")),
    ("client", ("SET", "leases", "x")),
    ("client", ("SET", "logs:n1", "x")),
    ("client", ("ZADD", "requests", "1", "x")),
    ("client", ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "leases")),
    # an agent reports, and reads its orders
    ("agent", ("XADD", "events", "*", "type", "actor.exited")),
    ("agent", ("XRANGE", "requests", "-", "+")),
    ("agent", ("XREAD", "STREAMS", "reply:c-1", "0")),
    ("agent", ("XREAD", "STREAMS", "logs-reply:r-1:n1", "0")),
    ("agent", ("GET", "secret:t-1")),
    ("agent", ("HGETALL", "tickets")),
    ("agent", ("HSET", "leader", "epoch", "9")),
    ("agent", ("DEL", "leases")),
    # it tells nobody what to do, not even itself, and takes nothing away from others
    ("agent", ("XADD", "node:n2", "*", "type", "actor.start")),
    ("agent", ("XADD", "logs:n2", "*", "reader", "r-1")),
    ("agent", ("PEXPIRE", "requests", "1")),
    ("agent", ("PEXPIRE", "leases", "1")),
    ("agent", ("PEXPIRE", "node:n2", "1")),
    ("agent", ("XDEL", "requests", "1-1")),
    ("agent", ("ZADD", "requests", "1", "x")),
    ("agent", ("EVAL", "return redis.call('PEXPIRE', KEYS[1], 1)", "1", "leases")),
    # an operator asks and reads, and launches nothing
    ("operator", ("XADD", "events", "*", "type", "node.cordoned")),
    ("operator", ("GET", "secret:t-1")),
    ("operator", ("SET", "secret:t-1", "x")),
    ("operator", ("ZADD", "requests", "1", "x")),
    ("operator", ("XADD", "node:n1", "*", "type", "actor.start")),
    ("operator", ("XREAD", "STREAMS", "requests", "0")),
    ("operator", ("HSET", "snapshot", "state", "x")),
    # an auditor reads
    ("auditor", ("XADD", "events", "*", "type", "gang.allocated")),
    ("auditor", ("XADD", "requests", "*", "type", "gang.release")),
    ("auditor", ("XTRIM", "events", "MAXLEN", "0")),
    ("auditor", ("GET", "secret:t-1")),
    ("auditor", ("XREAD", "STREAMS", "requests", "0")),
    ("auditor", ("XREAD", "STREAMS", "node:n1", "0")),
    ("auditor", ("XADD", "logs:n1", "*", "reader", "r-1")),
    ("auditor", ("XREAD", "STREAMS", "logs-reply:r-1:n1", "0")),
    ("auditor", ("EVAL", "return 1", "0")),
    # not even the allocator rules the server
    ("allocator", ("SET", "secret:t-1", "x")),
    *((user, words) for user in USERS for words in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"))),
    *((user, words) for user in USERS for words in (("ACL", "LIST"), ("SHUTDOWN", "NOSAVE"), ("SCRIPT", "FLUSH"))),
    *((user, ("GET", "/of/another/application")) for user in USERS),
]


@pytest.mark.parametrize(("user", "words"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_what_is_forbidden_is_refused(
    logged_in: dict[str, Redis], pool: str, user: str, words: tuple[str, ...]
) -> None:
    tails = ("events", "requests", "leader", "tickets", "snapshot", "leases", "reply:c-1", "node:n1", "secret:t-1")
    tails = (*tails, "node:n2", "logs:n1", "logs:n2", "logs-reply:r-1:n1")
    words = tuple(f"spoke:{{{pool}}}:{word}" if word in tails else word.lstrip("/") for word in words)
    denied = r"(?i)no permissions|NOPERM|can't (run|access)|ACL"
    with pytest.raises((rx.NoPermissionError, rx.ResponseError), match=denied):
        logged_in[user].execute_command(*words)


def test_a_user_with_too_little_is_told_what_is_missing(users: Users) -> None:
    with pytest.raises(ServerUnsuitable, match="does not allow this user"):
        spoke.Client(users.url("auditor"))
