"""The health of this node's GPUs: where it is found out, and a thread that tells of every change.

A *source* says what is wrong with which GPU: NVML (``nvml.py``), a file, or a Python function. The last two need no
hardware, and let a site plug in checks of its own. A GPU that a source does not name is healthy.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from spoke.errors import InvalidRequest
from spoke.events.model import Gpu

log = logging.getLogger("spoke.agent")

PLUGGED_EVERY_S = 1.0
JOIN_S = 3.0
KIND_REPORTED = "reported"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a GPU: a short stable name, and words for people."""

    kind: str
    reason: str


Health = Mapping[int, Trouble]
"""What is wrong, by the GPU's index; a healthy GPU is left out."""


class Source(Protocol):
    """Where the health of GPUs is found out."""

    def sample(self, stopping: threading.Event) -> Health:
        """Wait for the time of the next sample, or until ``stopping``, and take it."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Plugged:
    """A source that a function is: it returns what is wrong, by a GPU's index or UUID."""

    def __init__(self, read: Callable[[], Mapping[Any, Any]], gpus: Sequence[Gpu], every_s: float = PLUGGED_EVERY_S):
        self._read, self._every_s, self._first = read, every_s, True
        self._index = {name: gpu.index for gpu in gpus for name in (str(gpu.index), gpu.uuid)}

    def sample(self, stopping: threading.Event) -> Health:
        """See ``Source``. Raises InvalidRequest for what says nothing about a GPU of this node."""
        if not self._first:
            stopping.wait(self._every_s)
        self._first = False
        found: dict[int, Trouble] = {}
        for name, said in self._read().items():
            if str(name) not in self._index:
                raise InvalidRequest(f"the health of GPU {name!r} was said, which this node does not have")
            trouble = _trouble(said)
            if trouble is not None:
                found[self._index[str(name)]] = trouble
        return found

    def close(self) -> None:
        """Nothing is held."""


def _trouble(said: Any) -> Trouble | None:
    if isinstance(said, Mapping):
        return Trouble(str(said.get("kind") or KIND_REPORTED), str(said.get("reason", "")))
    return Trouble(KIND_REPORTED, said if isinstance(said, str) else "") if said else None


def file_reader(path: Path) -> Callable[[], Mapping[Any, Any]]:
    """Reads a JSON object: a GPU's index or UUID to what is wrong with it. No file, an empty one: all are healthy."""

    def read() -> Mapping[Any, Any]:
        try:
            text = path.read_text()
        except FileNotFoundError:
            return {}
        found = json.loads(text) if text.strip() else {}
        if not isinstance(found, dict):
            raise InvalidRequest(f'{path} must hold a JSON object, like {{"3": "its fan rattles"}}')
        return found

    return read


def hook(text: str) -> Callable[[], Mapping[Any, Any]]:
    """The function that ``module:function`` names; raises InvalidRequest."""
    module, _, name = text.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"the health hook {text!r} was named, and it cannot be imported: {error}") from error
    if not callable(found):
        raise InvalidRequest(f"the health hook {text!r} is no function")
    read: Callable[[], Mapping[Any, Any]] = found
    return read


def source_of(text: str, gpus: Sequence[Gpu]) -> Source:
    """The source that a setting names: a file's path, or ``module:function``; raises InvalidRequest."""
    if ":" in text and "/" not in text:
        return Plugged(hook(text), gpus)
    return Plugged(file_reader(Path(text).expanduser().absolute()), gpus)


class HealthMonitor:
    """One thread that samples a source, and tells what is wrong with all GPUs: first, and whenever that changes.

    A source that fails is asked again; what it said last stands meanwhile.
    """

    def __init__(self, source: Source, tell: Callable[[Health], object]) -> None:
        self._source, self._tell = source, tell
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spoke-health", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            self._source.close()

    def _run(self) -> None:
        told: Health | None = None
        failure = ""
        while not self._stopping.is_set():
            try:
                found = self._source.sample(self._stopping)
            except Exception as error:
                if str(error) != failure:
                    log.error("the health of the GPUs cannot be found out: %s", error)
                failure = str(error)
                self._stopping.wait(PLUGGED_EVERY_S)
                continue
            failure = ""
            now = {index: _same_words(trouble, (told or {}).get(index)) for index, trouble in found.items()}
            if now != told and not self._stopping.is_set():
                told = now
                self._tell(now)


def _same_words(now: Trouble, before: Trouble | None) -> Trouble:
    """The trouble as it was told first: a temperature that moves on is no news."""
    return before if before is not None and before.kind == now.kind and now.kind != KIND_REPORTED else now
