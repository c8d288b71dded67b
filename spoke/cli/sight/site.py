"""The web application behind ``spoke web``: pages, boards as JSON and as a stream, and actions behind a token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import orjson
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spoke.cli.sight.actions import Action, ActionKind
from spoke.cli.sight.board import Board
from spoke.cli.sight.changes import changes
from spoke.cli.sight.tails import News
from spoke.errors import Forbidden, InvalidRequest, ServerError, SpokeError, UnknownNode, UnknownTicket
from spoke.protocol.explanation import Explanation

STATIC = Path(__file__).parent / "static"
LOOK_S = 0.25
WATCHERS_MAX = 100
TAILS_MAX = 32
"""How many browsers may follow output: each has a thread and two connections to the server."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Source(Protocol):
    """Where present boards come from."""

    @property
    def board(self) -> Board:
        """The newest one."""


class History(Protocol):
    """Where the past comes from. All of it takes its time, and raises SpokeError."""

    def span(self) -> tuple[int, int]:
        """From when to when there is something to see, in milliseconds since 1970."""

    def board_at(self, ms: int) -> Board:
        """The board of a moment."""

    def explain(self, ticket_id: str, ms: int | None) -> Explanation:
        """Why a ticket was as it was then, or is as it is now."""


@dataclass(frozen=True, slots=True)
class Site:
    """What the application is made of. ``act`` is None, or ``token`` empty, where nothing may be changed.

    ``tails`` follows the output of a ticket, of one rank or of all; None where output is not shown.
    """

    source: Source
    history: History
    act: Callable[[Action], str] | None = None
    token: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    tails: Callable[[str, int | None], Iterator[News]] | None = None

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", lambda request: FileResponse(STATIC / "index.html")),
            Route("/api/about", self._about),
            Route("/api/board", self._board),
            Route("/api/stream", _Stream(self.source).respond),
            Route("/api/logs/{ticket}", _Tails(self.tails).respond),
            Route("/api/span", self._span),
            Route("/api/explain/{ticket}", self._explain),
            Route("/api/{kind}/{target}", self._act, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(self.hosts), www_redirect=False)
        return Starlette(
            routes=routes,
            middleware=[Middleware(_Headers), hosts],
            exception_handlers={SpokeError: _problem, OSError: _problem},
        )

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed from here."""
        return self.act is None or not self.token

    async def _about(self, request: Request) -> Response:
        logs = self.tails is not None
        return _json({"pool": self.source.board.pool, "read_only": self.read_only, "logs": logs})

    async def _board(self, request: Request) -> Response:
        ms = _moment(request)
        board = self.source.board if ms is None else await run_in_threadpool(self.history.board_at, ms)
        return _json(changes(None, board))

    async def _span(self, request: Request) -> Response:
        first_ms, last_ms = await run_in_threadpool(self.history.span)
        return _json({"first_ms": first_ms, "last_ms": last_ms})

    async def _explain(self, request: Request) -> Response:
        told = await run_in_threadpool(self.history.explain, request.path_params["ticket"], _moment(request))
        return _json(told)

    async def _act(self, request: Request) -> Response:
        kind, target = request.path_params["kind"], request.path_params["target"]
        if kind not in get_args(ActionKind):
            return _json({"error": f"there is no action {kind!r:.40}", "code": "unknown"}, 404)
        if self.act is None or self.read_only:
            raise Forbidden("this dashboard is read-only: start it with --token-file to change things from here")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            return _json({"error": "the token is not that of the dashboard's --token-file", "code": "token"}, 401)
        return _json({"done": await run_in_threadpool(self.act, Action(kind, target))})


class _Stream:
    """Server-sent events: first a whole board, then what changes. What many watchers need is worked out once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._watchers = 0
        self._last: tuple[Board | None, Board, bytes] | None = None

    async def respond(self, request: Request) -> Response:
        """The stream, until the browser leaves."""
        if self._watchers >= WATCHERS_MAX:
            return _json({"error": f"{WATCHERS_MAX} browsers watch already: close one", "code": "limit"}, 503)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        shown: Board | None = None
        self._watchers += 1
        try:
            while True:
                board = self._source.board
                if board is not shown:
                    yield self._message(shown, board)
                    shown = board
                await asyncio.sleep(LOOK_S)
        finally:
            self._watchers -= 1

    def _message(self, shown: Board | None, board: Board) -> bytes:
        last = self._last
        if last is None or last[0] is not shown or last[1] is not board:
            name = b"board" if shown is None else b"change"
            last = (shown, board, b"event: %s\ndata: %s\n\n" % (name, orjson.dumps(changes(shown, board))))
            self._last = last
        return last[2]


class _Tails:
    """Server-sent events: lines of output, and notes about it, until its actors have ended or the browser leaves."""

    def __init__(self, tails: Callable[[str, int | None], Iterator[News]] | None) -> None:
        self._tails = tails
        self._watchers = 0
        self._limiter: CapacityLimiter | None = None

    async def respond(self, request: Request) -> Response:
        """The stream; what goes wrong is told in it, since a browser shows nobody the text of an error."""
        if self._tails is None:
            raise Forbidden("this dashboard shows no output: start it with --logs")
        rank = request.query_params.get("rank")
        if rank is not None and not (rank.isascii() and rank.isdigit() and len(rank) < 8):
            raise InvalidRequest(f"rank={rank!r:.40} is no rank")
        if self._watchers >= TAILS_MAX:
            return _json({"error": f"{TAILS_MAX} browsers follow output already: close one", "code": "limit"}, 503)
        tail = self._tails(request.path_params["ticket"], None if rank is None else int(rank))
        return StreamingResponse(self._events(tail), media_type="text/event-stream")

    async def _events(self, tail: Iterator[News]) -> AsyncIterator[bytes]:
        self._limiter = self._limiter or CapacityLimiter(TAILS_MAX)
        self._watchers += 1
        try:
            while True:
                news = await to_thread.run_sync(next, tail, None, limiter=self._limiter)
                if news is None:
                    yield _event(b"end", "the actors have ended")
                    return
                for note in news.notes:
                    yield _event(b"note", note)
                yield _event(b"lines", news.lines) if news.lines else b": nothing new\n\n"
        except (SpokeError, OSError) as error:
            yield _event(b"end", str(error) or type(error).__name__)
        finally:
            self._watchers -= 1
            tail.close()  # type: ignore[attr-defined]


def _event(name: bytes, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name, orjson.dumps(data))


class _Headers:
    """Puts the security headers on every response, also on errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, with_headers)


def _moment(request: Request) -> int | None:
    text = request.query_params.get("at")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest(f"at={text!r:.40} is no moment: give milliseconds since 1970")
    return int(text)


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownTicket, 404),
    (UnknownNode, 404),
    (InvalidRequest, 400),
    (Forbidden, 403),
    (ServerError, 503),
    (TimeoutError, 504),
)


def _problem(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 409)
    code = error.code if isinstance(error, SpokeError) else "error"
    return _json({"error": str(error) or type(error).__name__, "code": code}, status)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
