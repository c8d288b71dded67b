"""The examples in deploy/ can be read by what they are for, and the commands in them exist."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from spoke.cli.main import app
from spoke.protocol.url import parse_place

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def options_of(command: str) -> set[str]:
    """All options of a command."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts}


def check_command(words: list[str]) -> None:
    known = options_of(words[0])
    for word in words:
        if word.startswith("--"):
            assert word in known, f"spoke {words[0]} has no option {word}"


def test_an_option_that_is_none_would_be_found() -> None:
    with pytest.raises(AssertionError, match="no option --log"):
        check_command(["agent", "--log", "x"])


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
    everywhere = re.findall(r"(?<![\w-])--[a-z][a-z-]*", (DEPLOY / f"spoke-{name}@.service").read_text())
    check_command([name, *(option for option in everywhere if option != "--now")])  # systemctl's, in a comment


@pytest.mark.parametrize("name", ["allocator", "agent"])
def test_systemd_finds_nothing_wrong_with_the_units(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    program = tmp_path / "spoke"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (DEPLOY / f"spoke-{name}@.service").read_text().replace("/opt/spoke/bin/spoke", str(program))
    unit = tmp_path / f"spoke-{name}@.service"
    unit.write_text(text)
    assert verified(unit) == ""
    unit.write_text(text.replace("TimeoutStopSec=", "TimeoutStopSeconds="))
    assert "TimeoutStopSeconds" in verified(unit), "it does look"


def verified(unit: Path) -> str:
    """What systemd says of a unit."""
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if unit.stem.removesuffix("@") in line)


def test_docker_accepts_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose here")
    command = [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_files_of_the_repository_that_are_named_exist() -> None:
    named = {
        (file.name, path)
        for file in DEPLOY.rglob("*")
        if file.is_file()
        for path in re.findall(r"(?<![\w/.])(?:docs|deploy|tests)/[\w/.-]+\w", file.read_text())
    }
    assert named, "they name some"
    assert [one for one in sorted(named) if not (DEPLOY.parent / one[1]).exists()] == []


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
