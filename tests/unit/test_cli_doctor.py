"""`spoke doctor`: what each check makes of what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spoke.cli import checks
from spoke.cli.checks import ABSENT, BROKEN, OK, WARNING
from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.cli.main import app


def doctor(*words: str, url: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *words], env={"SPOKE_URL": url, "SPOKE_POOL": "", "COLUMNS": "200"})
    return result.exit_code, result.stdout


def test_without_a_server_it_says_what_to_do_and_ends_with_1() -> None:
    code, text = doctor("--json", url=f"redis://127.0.0.1:{free_port()}")
    found = {finding["check"]: finding for finding in json.loads(text)}
    assert code == 1
    assert found["server"]["level"] == BROKEN
    assert "spoke up" in found["server"]["remedy"]
    assert {"ports", "shared memory", "locked memory", "GPUs", "RDMA ports", "pyverbs", "RDMA"} <= set(found)


def test_with_a_server_nothing_is_broken(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        code, text = doctor(url=server.url)
    assert code == 0, text
    assert "0 broken" in text
    assert "Valkey" in text or "Redis" in text


@pytest.mark.parametrize(
    ("policy", "maxmemory", "level"),
    [
        ("noeviction", 0, OK),
        ("allkeys-lru", 1 << 30, BROKEN),
        ("allkeys-lru", 0, WARNING),
        ("volatile-ttl", 1, WARNING),
    ],
)
def test_a_server_that_may_drop_the_log(policy: str, maxmemory: int, level: str) -> None:
    finding = checks.eviction(policy, maxmemory)
    assert finding.level == level
    assert bool(finding.remedy) == (level != OK)


def test_a_log_that_is_not_on_disk() -> None:
    assert checks.persistence({"aof_enabled": 1}).level == OK
    assert checks.persistence({"aof_enabled": 0}).level == WARNING
    assert checks.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}).level == BROKEN


def test_a_clock_that_is_off_counts_only_beyond_what_the_round_trip_explains() -> None:
    assert checks.skew(0.1, 0.01).level == OK
    assert checks.skew(-30.0, 0.01).level == WARNING
    assert checks.skew(3.0, 4.0).level == OK


def test_a_machine_without_nvml() -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    assert checks.nvml(missing).level in (ABSENT, WARNING)
