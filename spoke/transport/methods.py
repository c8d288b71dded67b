"""The table of what may be called from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from spoke.errors import ActorError

_NAMES_SHOWN: Final = 20


class Methods:
    """What of a target may be called from outside: public methods that are not its base class's own."""

    def __init__(self, target: object) -> None:
        self._target = target
        self._reserved = frozenset(getattr(target, "_reserved", ()))
        self._found: dict[str, tuple[Callable[..., Any], bool]] = {}

    def full_name(self, name: str) -> str:
        """The name for messages."""
        return f"{type(self._target).__name__}.{name}"

    def find(self, name: str) -> tuple[Callable[..., Any], bool]:
        """The bound method and whether it is async; ActorError for what may not be called."""
        known = self._found.get(name)
        if known is not None:
            return known
        if not self._callable(name):
            import difflib

            names = [other for other in dir(self._target) if self._callable(other)]
            alike = difflib.get_close_matches(name[:200], names, 3)
            hint = f"did you mean {' or '.join(alike)}? The" if alike else "the"
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            offered = ", ".join(names[:_NAMES_SHOWN]) or "no methods"
            error = ActorError(f"{self.full_name(name)[:200]!r} cannot be called; {hint} actor offers {offered}{more}")
            error.remote_type = "AttributeError"
            raise error
        function = getattr(self._target, name)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        self._found[name] = (function, is_async)
        return self._found[name]

    def _callable(self, name: str) -> bool:
        if name.startswith("_") or name in self._reserved:
            return False
        # Statically: asking whether something may be called must not run a property.
        found = inspect.getattr_static(self._target, name, None)
        return not isinstance(found, type) and (callable(found) or isinstance(found, staticmethod | classmethod))
