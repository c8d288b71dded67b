"""Connecting to the Redis or Valkey server, and its errors put into words.

``connect`` is the only place that builds a client, so that every connection has time limits, keepalive and RESP3.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.exceptions as rx
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.retry import Retry

from spoke.errors import (
    AuthenticationFailed,
    InvalidRequest,
    ServerError,
    ServerUnreachable,
    ServerUnsuitable,
)
from spoke.protocol.located import LocatedConnection, LocatedTLSConnection, locator
from spoke.protocol.url import has_password, mask_url, parse_place

VERSION_MIN = (6, 2)
BLOCK_MS_MAX = 2_000
"""No blocking read lasts longer: a half-open connection must be noticed."""
SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0

_HUNG_UP = re.compile("closed by server|reset by peer", re.IGNORECASE)
_NO_IDS = "The stream has exhausted the last possible ID"
_TRANSIENT = (_NO_IDS, "BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED")

Redis = redis.Redis


def connect(url: str, *, pool: str = "", timeout_s: float = SOCKET_TIMEOUT_S) -> Redis:
    """A client for the server at ``url``. It opens its connections when it needs them.

    ``pool`` is needed for a cluster, where it decides which of the nodes to ask. Raises InvalidRequest for a URL that
    cannot be read.
    """
    place = parse_place(url)
    options: dict[str, Any] = {
        **place.options,
        "protocol": 3,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # who retries, and for how long, is for the caller to say
        "client_name": "spoke",
    }
    if place.kind != "socket":
        options["socket_keepalive"] = True
        options["socket_connect_timeout"] = CONNECT_TIMEOUT_S
        options["socket_keepalive_options"] = {
            socket.TCP_KEEPIDLE: 5,
            socket.TCP_KEEPINTVL: 2,
            socket.TCP_KEEPCNT: 3,
        }
    if place.kind in ("sentinel", "cluster"):
        tls = options.get("connection_class") is SSLConnection
        options["connection_class"] = LocatedTLSConnection if tls else LocatedConnection
        options["locate"] = locator(place, pool)
    try:
        return redis.Redis.from_pool(redis.ConnectionPool(**options))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the server URL {mask_url(url)!r} cannot be read: {error}") from error


def check_server(client: Redis, url: str) -> None:
    """Make sure that the server can serve a pool; raise the ServerError that says why it cannot."""
    with explained(url):
        info = client.info("server")
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < VERSION_MIN:
        raise ServerUnsuitable(
            f"the server at {mask_url(url)} is version {info['redis_version']}; Spoke needs Redis "
            f"{'.'.join(map(str, VERSION_MIN))} or newer, or any Valkey: upgrade it, or run `spoke up`"
        )


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the redis client's errors into Spoke's own, which say what to do."""
    try:
        yield
    except ServerError:  # explained already; one of them is an OSError, too
        raise
    except rx.RedisError as error:
        raise explain(error, url) from error
    except OSError as error:
        raise ServerUnreachable(f"the server at {mask_url(url)} cannot be reached: {error}") from error


def explain(error: Exception, url: str) -> ServerError:
    """The Spoke error for an error of the redis client."""
    where, text = mask_url(url), str(error)
    if isinstance(error, rx.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        if has_password(url):
            return AuthenticationFailed(
                f"the server at {where} refuses the user or password in this URL ({text}): correct them there, "
                f"redis://USER:PASSWORD@HOST:PORT"
            )
        return AuthenticationFailed(
            f"the server at {where} asks for a user or password ({text}): "
            f"put them into the URL, redis://USER:PASSWORD@HOST:PORT"
        )
    if isinstance(error, rx.NoPermissionError) or text.startswith("NOPERM"):
        return ServerUnsuitable(
            f"the server at {where} does not allow this user what Spoke needs ({text}): name another user in the URL; "
            f"`spoke doctor` says which roles this one has (docs: how-to/security)"
        )
    if isinstance(error, rx.ReadOnlyError) or "READONLY" in text[:60]:
        return ServerUnsuitable(
            f"the server at {where} is a read-only replica: give the URL of its primary (redis-cli INFO replication)"
        )
    if "OOM" in text[:60] or isinstance(error, rx.OutOfMemoryError):
        return ServerUnsuitable(
            f"the server at {where} is out of memory and refuses writes (maxmemory, noeviction): "
            f"raise maxmemory, or free memory there; nothing was written"
        )
    if isinstance(error, (rx.AskError, rx.ClusterDownError)):
        return ServerUnsuitable(
            f"the server at {where} is a node of a cluster ({text}): use redis+cluster://HOST:PORT,HOST:PORT"
        )
    if text.startswith("BUSY"):
        return ServerUnreachable(f"the server at {where} is held up by a script (SCRIPT KILL ends it)")
    if text.startswith("NOREPLICAS"):
        return ServerUnsuitable(
            f"the server at {where} refuses writes, since too few replicas follow it (min-replicas-to-write): "
            f"look at INFO replication there"
        )
    if text.startswith("MISCONF"):
        return ServerUnsuitable(
            f"the server at {where} cannot write its data to disk and refuses writes: see its disk and its log ({text})"
        )
    if isinstance(error, rx.BusyLoadingError):
        return ServerUnreachable(f"the server at {where} is still loading its data: try again in a moment")
    if "SSL" in text or "ssl.c" in text:
        return ServerUnreachable(
            f"the server at {where} and this side do not come together over TLS ({text}): ssl_ca_certs must name the "
            f"authority of the server's certificate, which must be for that host; and a server that asks for a "
            f"certificate of yours needs ssl_certfile and ssl_keyfile, of an authority that it knows"
        )
    if isinstance(error, rx.ConnectionError) and not where.startswith(("rediss", "unix")) and _HUNG_UP.search(text):
        return ServerUnreachable(
            f"the server at {where} hung up ({text}): if it speaks TLS there, the URL begins with rediss://"
        )
    if isinstance(error, rx.InvalidResponse):
        return ServerUnsuitable(
            f"what answers at {where} is no Redis or Valkey server ({text}): look at the host and port of the URL"
        )
    if isinstance(error, (rx.ConnectionError, rx.TimeoutError)):
        return ServerUnreachable(
            f"no server answers at {where} ({text}): start one (`spoke up`), or give --url or SPOKE_URL"
        )
    return ServerError(f"the server at {where} answered {text!r}")


def transient(error: BaseException) -> bool:
    """Whether the server refuses for a moment only: a script that runs, a failover, replicas that must catch up."""
    return isinstance(error, rx.ResponseError) and str(error).startswith(_TRANSIENT)


StreamEntries = list[tuple[bytes, dict[bytes, bytes]]]


def trimmed_behind(client: Redis, stream: str, after: str | bytes, kept: int) -> bool:
    """Whether a stream that keeps its newest ``kept`` entries is as long as it gets, and begins behind ``after``."""
    return client.xlen(stream) >= kept and not client.xrevrange(stream, max=after, count=1)


def read_stream(client: Redis, key: str, after: str, *, block_ms: int | None = None, count: int = 256) -> StreamEntries:
    """The entries of one stream after an id, at most ``count``; waits up to ``block_ms`` for the first (None: not)."""
    found: Any = client.xread({key: after}, count=count, block=block_ms)
    if not found:
        return []
    entries: Any = next(iter(found.values()))
    # RESP3 answers {key: [[entry, ...], ...]}; one stream gives one chunk
    return [(entry_id, fields) for chunk in entries for entry_id, fields in chunk]


FlatEntries = list[tuple[bytes, list[bytes]]]


def pack(*words: str | bytes | int) -> bytes:
    """One command for a bare connection; in a fifth of the time that the redis client's own packer takes."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type]
    return packed


def pack_xread(key: str, after: str | bytes, *, block_ms: int | None, count: int) -> bytes:
    """The command that reads on in a stream, waiting up to ``block_ms`` for the first entry (None: not)."""
    wait = () if block_ms is None else ("BLOCK", block_ms)
    return pack("XREAD", "COUNT", count, *wait, "STREAMS", key, after)


def take_xread(connection: Any) -> FlatEntries:
    """What ``pack_xread`` has found: ids, and fields and values in turn."""
    found: Any = connection.read_response()
    if not found:
        return []
    (entries,) = found.values()
    return [(entry_id, flat) for entry_id, flat in entries]
