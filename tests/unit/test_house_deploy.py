"""The examples in deploy/ can be read by what they are for, and the commands in them exist."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from spoke.cli.main import app
from spoke.protocol.url import parse_place

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def options_of(*command: str) -> str:
    """The help of a command, with all its options."""
    return CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output


def check_command(words: list[str]) -> None:
    known = options_of(words[0])
    for word in words:
        if word.startswith("--"):
            assert word in known, f"spoke {words[0]} has no option {word}"


@pytest.mark.parametrize("name", ["allocator", "agent"])
def test_the_units_start_commands_that_exist(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DEPLOY / f"spoke-{name}@.service").read_text())
    assert {"Unit", "Service", "Install"} == set(unit.sections())
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/spoke")
    assert words[0] == name
    check_command(words)
    assert "password" not in unit["Service"]["ExecStart"]
    assert unit["Service"]["Environment"].startswith("SPOKE_URL=file://")


def test_the_compose_file_holds_together() -> None:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = found["services"]
    for name, service in services.items():
        assert service["image"], name
        assert set(service.get("depends_on", [])) <= services.keys()
        assert set(service["networks"]) <= found["networks"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in found["volumes"]
        if service["command"][0] == "spoke":
            check_command(service["command"][1:])
            place = parse_place(service["environment"]["SPOKE_URL"])
            assert {host for host, _ in place.addresses} <= services.keys()
            assert place.service == "spoke"


def test_the_access_list_names_each_role_once_and_lets_nobody_in() -> None:
    lines = (DEPLOY / "users.acl").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["default", "allocator", "agent", "client", "auditor", "operator"]
    for line in lines:
        assert line.split()[2] == "off"
        assert "-@all" in line
        assert "nopass" not in line
