"""pyverbs, imported late, from wherever it fits, and without its side effects.

pyverbs binds private symbols of the libibverbs that is on the machine, so the one that fits is the distribution's own
package, built for the distribution's Python. A virtual environment does not see it; another build of the same Python
version can load it all the same, so it is looked for there, too: that package alone, nothing else of that directory.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
import threading
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

DISTRIBUTION_PATHS: Final = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3/site-packages")
_NAMES: Final = {
    "addr": ("AHAttr", "GlobalRoute", "GID"),
    "cq": ("CQ", "CompChannel"),
    "device": ("Context",),
    "mr": ("MR",),
    "pd": ("PD",),
    "qp": ("QP", "QPAttr", "QPCap", "QPInitAttr"),
    "wr": ("SGE", "RecvWR", "SendWR"),
    "pyverbs_error": ("PyverbsError",),
}
_lock = threading.Lock()


class VerbsMissing(Exception):
    """RDMA cannot be used here; the text says why and what to do."""


class Verbs:
    """The names of pyverbs that Spoke uses, as attributes; the enumerations as ``e``."""

    def __init__(self) -> None:
        self.e: Any = importlib.import_module("pyverbs.enums")
        for module, names in _NAMES.items():
            found = importlib.import_module(f"pyverbs.{module}")
            for name in names:
                setattr(self, name, getattr(found, name))
        self.fork_is_safe = self._make_fork_safe()

    def __getattr__(self, name: str) -> Any:  # for the type checker: they are set in __init__
        raise AttributeError(name)

    def _make_fork_safe(self) -> bool:
        """Registered pages must not be copied on write when the process forks; old kernels need to be asked.

        Whether any memory may be registered: what an old kernel was asked for is missing in the child.
        """
        fork = importlib.import_module("pyverbs.fork")
        fork.fork_init()
        return bool(fork.is_fork_initialized() == self.e.IBV_FORK_UNNEEDED)


def load() -> Verbs:
    """pyverbs; raises VerbsMissing with a remedy."""
    with _lock:
        found = _load()
    if isinstance(found, Verbs):
        return found
    raise VerbsMissing(found)


def problem() -> str | None:
    """Why pyverbs cannot be loaded, and what to do; None when it can."""
    try:
        load()
    except VerbsMissing as missing:
        return str(missing)
    return None


@lru_cache(maxsize=1)
def _load() -> Verbs | str:
    root = logging.getLogger()
    quiet = logging.NullHandler()
    root.addHandler(quiet)  # pyverbs calls logging.basicConfig, which does nothing when there is a handler
    try:
        _find()
        return Verbs()
    except ModuleNotFoundError as error:
        return _missing(error)
    except ImportError as error:
        return (
            f"pyverbs does not load ({error}); it must be of the same version as the machine's libibverbs: use the "
            "distribution's package (Debian: apt install python3-pyverbs) rather than one from a package index"
        )
    except Exception as error:
        return f"pyverbs failed as it was loaded ({type(error).__name__}: {error}); see `spoke doctor`"
    finally:
        root.removeHandler(quiet)


def _find() -> None:
    """Make ``import pyverbs`` work, if it does not, from the distribution's directory."""
    if "pyverbs" in sys.modules or importlib.util.find_spec("pyverbs") is not None:
        return
    for path in DISTRIBUTION_PATHS:
        spec = importlib.machinery.PathFinder.find_spec("pyverbs", [path])
        if spec is not None and spec.loader is not None:
            package: ModuleType = importlib.util.module_from_spec(spec)
            sys.modules["pyverbs"] = package
            try:
                spec.loader.exec_module(package)
                importlib.import_module("pyverbs.enums")
            except BaseException:
                for name in [name for name in sys.modules if name.partition(".")[0] == "pyverbs"]:
                    del sys.modules[name]
                raise
            return


def _missing(error: ModuleNotFoundError) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for path in DISTRIBUTION_PATHS:
        if importlib.machinery.PathFinder.find_spec("pyverbs", [path]) is not None:
            return (
                f"the distribution's pyverbs in {path} is built for another Python than this {version} ({error}); "
                "make the virtual environment with the distribution's Python (/usr/bin/python3 -m venv)"
            )
    return (
        "pyverbs is not installed; use the distribution's package (Debian and Ubuntu: apt install python3-pyverbs, "
        "Fedora: dnf install python3-pyverbs)"
    )
