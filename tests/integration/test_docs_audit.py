"""The commands of "Ask the log" run as they stand on the golden log."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from spoke.events.archive import Archive
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.golden import golden_pool, write_log

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/audit.md"


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    keys = Keys(pool)
    with connect(shared_server.url) as redis:
        write_log(redis, keys.events, golden_pool().log)
        Archive(tmp_path / "archive", pool).write(EventLog(redis, keys.events, keys.snapshot))
    monkeypatch.chdir(tmp_path)
    return shared_server.url


def run(url: str, pool: str, words: list[str]) -> Result:
    return CliRunner().invoke(app, words, env={"SPOKE_URL": url, "SPOKE_POOL": pool, "COLUMNS": "200"})


def test_the_page(place: str, pool: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) > 20
    for command in commands:
        words = shlex.split(command, comments=True)
        if "|" in words:
            words = words[: words.index("|")]
        assert words.pop(0) == "spoke"
        words = [word.replace("/srv/spoke/default", str(tmp_path / "archive")) for word in words]
        if "restore" in words:
            words[words.index("default")] = pool
            words[words.index("anew")] = f"{pool}-anew"
        result = run(place, pool, words)
        assert result.exit_code == 0, f"{command}: {result.output}"
    assert (tmp_path / "week.html").stat().st_size > 5_000
    assert (tmp_path / "november.csv").read_text().startswith("ticket,name,user,project")
