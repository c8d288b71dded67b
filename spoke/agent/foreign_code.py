"""Environment variables with which a launch could bring code of its own to a node that runs no commands.

The loader, the interpreter and libraries import what these name, before or beside a registered type. It is a list of
what is known, not a sandbox: what else the node's libraries load by a variable's word is not on it.
"""

from __future__ import annotations

from typing import Final

_PREFIXES: Final = ("LD_", "DYLD_", "PYTHON", "BASH_FUNC_", "OPENSSL_")
_HARMLESS: Final = frozenset(
    {"PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONDONTWRITEBYTECODE", "PYTHONASYNCIODEBUG"}
)
_NAMES: Final = frozenset(
    {
        "PATH",
        "HOME",  # Python imports from ~/.local
        "ENV",
        "BASH_ENV",
        "GCONV_PATH",
        "GLIBC_TUNABLES",
        "CUDA_INJECTION32_PATH",
        "CUDA_INJECTION64_PATH",
        "NCCL_NET_PLUGIN",
        "NCCL_TUNER_PLUGIN",
        "NCCL_PROFILER_PLUGIN",
        "NCCL_CONF_FILE",
    }
)


def brings_code(name: str) -> bool:
    """Whether a variable of this name says where code is to be loaded from."""
    return name in _NAMES or (name.startswith(_PREFIXES) and name not in _HARMLESS)
