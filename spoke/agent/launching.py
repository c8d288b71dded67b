"""What an actor's process is given: its environment, its command line, and (a registered class) its launch document."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from spoke.agent.config import LOG_BYTES, LOG_FILES
from spoke.agent.foreign_code import brings_code
from spoke.agent.instructions import Spawn, SpawnHelper
from spoke.agent.logs.files import log_path
from spoke.agent.procfs import LAUNCH_MARK
from spoke.agent.torchrun import worker_environment
from spoke.errors import InvalidRequest
from spoke.events.model import GPU_MILLI
from spoke.events.supervision import NONE
from spoke.protocol.launch import LaunchBlob, decode_blob
from spoke.protocol.orders import StartActor

ROOT = str(Path(__file__).resolve().parents[2])
_RUN = f"import sys; sys.path.append({ROOT!r}); from spoke.agent.actor_main import main; main()"
"""Run with -c, since -m costs every start some milliseconds. The path is for an agent that runs uninstalled.

With -P nothing is imported from the working directory, which is the client's to choose.
"""

AGENTS_OWN = frozenset({"SPOKE_URL", "SPOKE_KEY", "SPOKE_KEY_FILE"})
"""Not for actors: with these they could speak to the server as the agent."""
OF_THE_SLOT = frozenset(
    {"SPOKE_GPU_SHARE", "SPOKE_NICS", "SPOKE_NUMA_NODE", "SPOKE_GROUP", "SPOKE_RANK_IN_GROUP", "SPOKE_GROUP_SIZE"}
)
"""Set for actors that have such a thing; an agent that is an actor itself has its own, which are not theirs."""
REASON_CHARACTERS_MAX = 4_000


@dataclass(frozen=True, slots=True)
class Site:
    """What all launches on a node have in common. ``mark`` is the launch mark's part before the launch id.

    ``directory`` is where actors ask for the other members of their gang. A log is put aside at ``log_bytes``, and
    ``log_files`` such files of an actor are kept.
    """

    pool: str
    node_id: str
    mark: str
    address: str
    imports: tuple[str, ...]
    log_dir: Path
    cwd: str
    directory: str = ""
    log_bytes: int = LOG_BYTES
    log_files: int = LOG_FILES
    allow_commands: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The keeper's specification of a process, the launch document (empty for a command), and who reads its output."""

    spec: dict[str, Any]
    document: bytes
    log_key: bytes = b""


def prepare(step: Spawn, site: Site, base_env: Mapping[str, str]) -> Prepared:
    """What to hand to the keeper; raises SpokeError for a launch that makes no sense."""
    order = step.order
    launch = decode_blob(step.blob) if step.blob else LaunchBlob(b"")
    is_command = bool(order.spec.argv)
    argv = order.spec.argv or (sys.executable, "-P", "-c", _RUN, order.spec.type_name, order.actor_id)
    env = environment(order, launch, site, base_env, step.restarts)
    spec = _spec(order, order.launch_id, argv, env, site)
    spec |= {"is_command": is_command, "rlimits": dict((order.spec.supervision or NONE).rlimits)}
    return Prepared(spec, b"" if is_command else _document(order, launch, site, step.restarts), launch.log_key)


def prepare_helper(step: SpawnHelper, site: Site, base_env: Mapping[str, str]) -> Prepared:
    """What to hand to the keeper for a health check or an exit hook; raises SpokeError."""
    order, care = step.order, step.order.spec.supervision or NONE
    launch = decode_blob(step.blob) if step.blob else LaunchBlob(b"")
    process_id = f"{order.launch_id}+{step.part}"
    env = environment(order, launch, site, base_env, step.restarts) | {LAUNCH_MARK: site.mark + process_id}
    if step.part == "hook":
        argv = care.exit_hook.argv if care.exit_hook is not None else ()
        env |= {
            "SPOKE_EXIT_CODE": str(step.code),
            "SPOKE_EXIT_SIGNAL": str(step.signal),
            "SPOKE_EXIT_REASON": step.reason.replace("\0", "?")[:REASON_CHARACTERS_MAX],
        }
    else:
        argv = care.health.argv if care.health is not None else ()
    spec = _spec(order, process_id, argv, env, site) | {"is_command": True}
    if step.part == "health":
        spec["log"] = os.devnull  # every few seconds, between the lines of the actor
    return Prepared(spec, b"")


def _spec(
    order: StartActor, process_id: str, argv: Sequence[str], env: Mapping[str, str], site: Site
) -> dict[str, Any]:
    return {
        "id": process_id,
        "argv": list(argv),
        "env": dict(env),
        "cwd": os.path.join(site.cwd, order.spec.cwd),
        "log": str(log_path(site.log_dir, order.ticket_id, order.rank, order.actor_id)),
        "log_bytes": site.log_bytes,
        "log_files": site.log_files,
    }


def environment(
    order: StartActor, launch: LaunchBlob, site: Site, base: Mapping[str, str], restarts: int = 0
) -> dict[str, str]:
    """The agent's environment (without its own secrets), the launch's additions, then what Spoke answers for.

    CUDA must see the actor's GPUs and no others, before anything in the process initializes it. RANK and its like are
    what ``torch.distributed`` reads with ``init_process_group("env://")``.
    """
    for name, value in launch.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidRequest(f"the environment variable {name!r} cannot be set: it has no usable name or value")
        if not site.allow_commands and brings_code(name):
            raise InvalidRequest(
                f"the environment variable {name} says where code is loaded from, and this node runs only its own: "
                "leave it out, or start the agent with --allow-commands"
            )
    gpus = ",".join(map(str, order.gpu_ids))
    ours = {
        "CUDA_VISIBLE_DEVICES": gpus,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "NVIDIA_VISIBLE_DEVICES": gpus or "void",
        "RANK": str(order.rank),
        "LOCAL_RANK": str(order.local_rank),
        "GROUP_RANK": str(order.group_rank),
        "WORLD_SIZE": str(order.world_size),
        "LOCAL_WORLD_SIZE": str(order.local_world_size),
        "MASTER_ADDR": order.master_addr,
        "MASTER_PORT": str(order.master_port),
        "SPOKE_TICKET": order.ticket_id,
        "SPOKE_ACTOR": order.actor_id,
        "SPOKE_POOL": site.pool,
        "SPOKE_NODE": site.node_id,
        "SPOKE_RESTART_COUNT": str(restarts),
        LAUNCH_MARK: site.mark + order.launch_id,
    }
    if order.gpu_milli:
        ours["SPOKE_GPU_SHARE"] = f"{order.gpu_milli / GPU_MILLI:g}"
    if order.nics:
        ours["SPOKE_NICS"] = ",".join(order.nics)
        ours["NCCL_IB_HCA"] = "=" + ",".join(order.nics)  # with "=" NCCL takes these ports, and no others
    if order.numa_node >= 0:
        ours["SPOKE_NUMA_NODE"] = str(order.numa_node)
    if order.group:
        ours["SPOKE_GROUP"] = order.group
        ours["SPOKE_RANK_IN_GROUP"] = str(order.rank_in_group)
        ours["SPOKE_GROUP_SIZE"] = str(order.group_size)
    inherited = {name: value for name, value in base.items() if name not in AGENTS_OWN | OF_THE_SLOT}
    before = {"PYTHONUNBUFFERED": "1", **inherited, **launch.env}
    if launch.torchrun is not None:
        folder = log_path(site.log_dir, order.ticket_id, order.rank, order.actor_id).parent
        ours |= worker_environment(order, launch.torchrun, restarts, before, folder)
    return {**before, **ours}


def _document(order: StartActor, launch: LaunchBlob, site: Site, restarts: int) -> bytes:
    if not launch.secret:
        raise InvalidRequest(f"the launch of {order.actor_id} carries no secret: use the client of the same release")
    return msgspec.msgpack.encode(
        {
            "type_name": order.spec.type_name,
            "imports": site.imports,
            "cwd": site.cwd,
            "secret": launch.secret,
            "args": launch.args,
            "advertise": site.address,
            "directory": site.directory,
            "context": {
                "rank": order.rank,
                "local_rank": order.local_rank,
                "group_rank": order.group_rank,
                "world_size": order.world_size,
                "local_world_size": order.local_world_size,
                "num_nodes": order.num_nodes,
                "gpu_ids": order.gpu_ids,
                "gpu_uuids": order.gpu_uuids,
                "gpu_milli": order.gpu_milli,
                "nics": order.nics,
                "numa_node": order.numa_node,
                "group": order.group,
                "rank_in_group": order.rank_in_group,
                "group_size": order.group_size,
                "ticket_id": order.ticket_id,
                "actor_id": order.actor_id,
                "node_id": site.node_id,
                "pool": site.pool,
                "master_addr": order.master_addr,
                "master_port": order.master_port,
                "restarts": restarts,
            },
        }
    )
