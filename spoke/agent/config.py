"""How an agent runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spoke.protocol.arrival import WAIT_S
from spoke.protocol.identity import Key

PORTS_DEFAULT = 64
LOG_BYTES = 64 << 20
LOG_FILES = 4
LOG_KEEP_S = 7 * 86_400.0
LOG_TOTAL = "20%"


def default_log_dir() -> Path:
    """Where actors' logs go: ``spoke/logs`` in the user's state directory (XDG_STATE_HOME, else ~/.local/state)."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "spoke" / "logs"


def default_run_dir() -> Path:
    """Where agents lock their node ids: in the user's runtime directory, else in the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "spoke" if runtime else Path(tempfile.gettempdir()) / f"spoke-{os.getuid()}"


@dataclass(frozen=True)
class AgentConfig:
    """How an agent runs.

    ``gpus`` is a number of logical GPUs, or ``"auto"`` to ask NVML. ``imports`` are the modules (names, or paths of
    .py files) that register the actor types this node may run; ``allow_commands`` lets it run any command besides.
    ``cpus`` (cores) and ``memory`` (bytes) are found if not given, and so is ``address``, where other nodes reach this
    one. ``ports`` is how many ports are held for the rendezvous of gangs. All agents of a user on a machine must share
    ``run_dir``. An actor of a registered type must be up within ``start_limit_s``; at the agent's end no actor has a
    longer grace than ``leave_s_max``. ``key`` signs the node's requests, in pools that ask for it. ``topology`` is a
    YAML file that says how near GPUs and NICs are to each other; else NVML says it of real GPUs. ``health`` says
    where the health of the GPUs is found out: a JSON file, or ``module:function``; else NVML says it of real GPUs.
    At its start the agent waits up to ``server_wait_s`` for a server that is not there. An actor's log is put aside
    when it has ``log_bytes``, and ``log_files`` such files are kept; the output of a ticket is removed ``log_keep_s``
    seconds after its end, or sooner, the oldest first, where all output has more than ``log_total``: a size, a share of
    its filesystem like ``20%``, or ``off``.
    """

    url: str
    pool: str
    node_id: str
    gpus: int | Literal["auto"] = 0
    imports: tuple[str, ...] = ()
    allow_commands: bool = False
    lease_ms: int = 10_000
    log_dir: Path = field(default_factory=default_log_dir)
    run_dir: Path = field(default_factory=default_run_dir)
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None
    memory: int | None = None
    ports: int = PORTS_DEFAULT
    address: str = ""
    start_limit_s: float = 300.0
    leave_s_max: float = 15.0
    key: Key | None = None
    topology: Path | None = None
    health: str = ""
    server_wait_s: float = WAIT_S
    log_bytes: int = LOG_BYTES
    log_files: int = LOG_FILES
    log_keep_s: float = LOG_KEEP_S
    log_total: str = LOG_TOTAL
