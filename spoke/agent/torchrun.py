"""What torchrun sets for its workers, for commands that are run as it would; and the error files that they write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from spoke.protocol.launch import Torchrun
from spoke.protocol.orders import StartActor

ERROR_FILE: Final = "TORCHELASTIC_ERROR_FILE"
ERROR_BYTES_MAX: Final = 256 * 1024
MESSAGE_CHARACTERS_MAX: Final = 1_000


def worker_environment(
    order: StartActor, launch: Torchrun, restarts: int, before: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """Torchrun's variables besides those that every actor has; ``before`` is the environment without them.

    A mixed gang's groups are roles. Rank 0 serves the store, since there is no torchrun agent that could.
    """
    more = {
        "ROLE_NAME": order.group or launch.role,
        "ROLE_RANK": str(order.rank_in_group if order.group else order.rank),
        "ROLE_WORLD_SIZE": str(order.group_size if order.group else order.world_size),
        "GROUP_WORLD_SIZE": str(order.num_nodes),
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(launch.max_restarts),
        "TORCHELASTIC_RUN_ID": launch.run_id or order.ticket_id,
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        ERROR_FILE: str(folder / f"{order.rank}-{order.actor_id}.{restarts}.error.json"),
    }
    defaults = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    if order.local_world_size > 1:
        defaults["OMP_NUM_THREADS"] = "1"
    return {name: value for name, value in defaults.items() if name not in before} | more


def read_error(env: Mapping[str, str]) -> str:
    """What a worker wrote of its error (``torch.distributed.elastic``'s ``record`` does); empty if nothing."""
    path = env.get(ERROR_FILE, "")
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > ERROR_BYTES_MAX:
                return ""
            found = json.loads(file.read())
        message = found["message"]
        text = message["message"] if isinstance(message, dict) else message
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return str(text)[:MESSAGE_CHARACTERS_MAX]
