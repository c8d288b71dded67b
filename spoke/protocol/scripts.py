"""Lua scripts on the server, which run there as a whole or not at all.

They may run when the server's memory is full: a commit is what empties the inbox, and a lease that cannot be renewed
ends what runs. What clients and agents append is refused then, and that is what grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final
from weakref import WeakSet

from redis.exceptions import ResponseError

from spoke.protocol.server import Redis

_FLAGS: Final = "#!lua flags=allow-oom\n"
_OLD: WeakSet[Redis] = WeakSet()
"""Clients of servers before Redis 7.0, where scripts have no flags, and are refused when memory is full."""


class Script:
    """A script that stands in a file beside the code."""

    def __init__(self, package: str, name: str) -> None:
        self._text = files(package).joinpath(name).read_text()

    def load(self, client: Redis) -> Any:
        """Make it known to the server; the name by which EVALSHA calls it there."""
        if client not in _OLD:
            try:
                return client.script_load(_FLAGS + self._text)
            except ResponseError as error:
                _note_old(client, error)
        return client.script_load(self._text)

    def run(self, client: Redis, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Its answer; it is made known to the server where it is not."""
        if client not in _OLD:
            try:
                return client.register_script(_FLAGS + self._text)(keys=keys, args=args)
            except ResponseError as error:
                _note_old(client, error)
        return client.register_script(self._text)(keys=keys, args=args)


def _note_old(client: Redis, error: ResponseError) -> None:
    """Raises the error again if it is another one."""
    if "unexpected symbol near '#'" not in str(error):
        raise error
    _OLD.add(client)
