"""``spoke run --torch`` beside the real torchrun: the same variables and restarts, and an example that resumes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_ddp import ROOT, RUN_S, SPOKE, url  # noqa: F401

pytest.importorskip("torch")
pytest.importorskip("sklearn")

DUMP = """
import json, os, sys, time
path = os.path.join(sys.argv[1], os.environ["RANK"] + "." + os.environ["TORCHELASTIC_RESTART_COUNT"])
with open(path + ".new", "w") as file:
    json.dump({"env": dict(os.environ), "argv": sys.argv[2:]}, file)
os.rename(path + ".new", path)
if "fail" in sys.argv and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    until = time.monotonic() + 60  # the failure of rank 1 ends rank 0, which must have written by then
    while time.monotonic() < until:
        if os.environ["RANK"] == "1" and os.path.exists(os.path.join(sys.argv[1], "0.0")):
            break
        time.sleep(0.05)
    sys.exit(3)
"""
RAISE = """
from torch.distributed.elastic.multiprocessing.errors import record
@record
def main():
    raise ValueError("the loss is not a number")
main()
"""
OTHERWISE = {
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_USE_AGENT_STORE",
}
"""What both set, and not to the same."""
NOT_THE_WORKERS = {"TORCHELASTIC_SIGNALS_TO_HANDLE", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
"""What torchrun sets for itself and its workers happen to inherit, and what a shell or an interpreter sets."""


def base_env(**more: str) -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR") if name in os.environ
    }
    return {**kept, "COLUMNS": "200", **more}


def ran(command: list[str], cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=base_env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )


def dumps(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What each rank found, by rank and restart."""
    return {tuple(map(int, path.name.split("."))): json.loads(path.read_text()) for path in folder.iterdir()}  # type: ignore[misc]


def both(url: str, pool: str, tmp_path: Path, *words: str) -> tuple[Any, Any]:  # noqa: F811
    """What the workers of torchrun and of ``spoke run --torch`` found, on one node with two workers."""
    script = tmp_path / "dump.py"
    script.write_text(DUMP)
    found = []
    shape = ["--nnodes=1", "--nproc-per-node=2", "--max-restarts=2"]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), *shape]
    ours = [SPOKE, "run", "--url", url, "--pool", pool, "--torch", *shape]
    for name, command in (("torchrun", torchrun), ("spoke", ours)):
        folder = tmp_path / name
        folder.mkdir()
        rendezvous = ["--master-port=0", f"--log-dir={tmp_path / 'logs'}"] if name == "torchrun" else []
        done = ran([*command, *rendezvous, str(script), str(folder), *words])
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"
        found.append(dumps(folder))
    return found[0], found[1]


@pytest.mark.timeout(240)
def test_the_same_variables_as_torchruns(url: str, pool: str, tmp_path: Path) -> None:  # noqa: F811
    torchruns, ours = both(url, pool, tmp_path, "--flag", "x")
    assert torchruns.keys() == ours.keys() == {(0, 0), (1, 0)}
    for key, theirs in torchruns.items():
        mine = ours[key]
        assert mine["argv"] == theirs["argv"] == ["--flag", "x"]
        added = {name for name in theirs["env"] if name not in base_env()} - NOT_THE_WORKERS
        assert {"RANK", "ROLE_RANK", "TORCHELASTIC_MAX_RESTARTS", "OMP_NUM_THREADS"} <= added, "the comparison is one"
        missing = {name for name in added if name not in mine["env"]}
        assert not missing, f"torchrun sets {missing}"
        different = {
            name: (theirs["env"][name], mine["env"][name])
            for name in added - OTHERWISE
            if theirs["env"][name] != mine["env"][name]
        }
        assert not different
        assert mine["env"]["TORCHELASTIC_USE_AGENT_STORE"] == "False"


@pytest.mark.timeout(240)
def test_the_same_restarts_as_torchruns(url: str, pool: str, tmp_path: Path) -> None:  # noqa: F811
    torchruns, ours = both(url, pool, tmp_path, "fail")
    assert torchruns.keys() == ours.keys() == {(0, 0), (1, 0), (0, 1), (1, 1)}
    for key in torchruns:
        for name in ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
            assert torchruns[key]["env"][name] == ours[key]["env"][name]


@pytest.mark.timeout(240)
def test_what_record_writes_is_told(url: str, pool: str, tmp_path: Path) -> None:  # noqa: F811
    script = tmp_path / "raises.py"
    script.write_text(RAISE)
    done = ran([SPOKE, "run", "--url", url, "--pool", pool, "--torch", str(script)])
    assert done.returncode == 1, done.stderr
    assert re.search(r"rank 0 on \S+ ended with code 1: ValueError: the loss is not a number", done.stderr), done.stderr


@pytest.mark.timeout(300)
def test_training_goes_on_from_its_checkpoint_when_a_rank_was_killed(url: str, pool: str, tmp_path: Path) -> None:  # noqa: F811
    """The command of "Coming from torchrun", with a rank that kills itself."""
    (command,) = re.findall(
        r"^\$ spoke (run --torch .*)$", (ROOT / "docs/how-to/torchrun.md").read_text(), re.MULTILINE
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    words = [SPOKE, *shlex.split(command), "--die-at", "8", "--epochs", "25"]
    done = ran(words, cwd=tmp_path, SPOKE_URL=url, SPOKE_POOL=pool)
    said = f"{done.stdout}\n--- stderr:\n{done.stderr}"
    assert done.returncode == 0, said
    begun = sorted(re.findall(r"rank (\d) of 4 begins at epoch (\d+), restart (\d)", done.stdout))
    assert begun == [(str(rank), str(first), str(n)) for rank in range(4) for first, n in ((0, 0), (8, 1))], said
    assert "rank 3 (rank-3) was ended by signal 9; all 4 members are started again (restart 1)" in done.stderr, said
    assert re.search(r"accuracy on 360 held-out digits: 0\.9", done.stdout), said
