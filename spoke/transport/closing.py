"""What is closed when its ``with`` block ends."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Base of what has a ``close``."""

    def close(self) -> None:
        """End it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClosing(Closing):
    """Base of what has a ``close`` that never waits, and so may be called in an event loop, too."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
