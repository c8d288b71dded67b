"""Server URLs: where they come from, what they say, and how they are shown without their secrets.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]            one server          (rediss:// with TLS)
    unix://[USER:PASSWORD@]/PATH                        a local socket
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,…/SERVICE[/DB]    the primary that the sentinels name
    redis+cluster://[USER:PASSWORD@]HOST:PORT,…         the node that owns the pool's slot
    file:///PATH                                        the URL stands in that file

The last two take ``rediss+`` for TLS. Options follow a ``?``: those of redis-py (``ssl_ca_certs``, ``ssl_certfile``,
``ssl_keyfile`` …), and ``sentinel_username`` and ``sentinel_password`` where the sentinels want their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.connection import parse_url

from spoke.errors import InvalidRequest

DEFAULT_URL = "redis://127.0.0.1:6379"
DEFAULT_POOL = "default"
PLAIN_SCHEMES = ("redis", "rediss", "unix")
LOCATED_SCHEMES = ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
URL_FILE_BYTES_MAX = 16_384
SENTINEL_PORT = 26_379
PORT = 6_379
_read_plain: Callable[[str], dict[str, Any]] = parse_url

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL says. ``kind``: how to find the server; ``options``: keyword arguments of redis-py's connections.

    ``addresses`` are the servers named (none for a socket), ``sentinel_options`` go to connections with sentinels.
    """

    kind: Literal["server", "socket", "sentinel", "cluster"]
    addresses: tuple[Address, ...]
    options: dict[str, Any] = field(repr=False)
    service: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def resolve_url(url: str | None) -> str:
    """The server's URL: the argument, else SPOKE_URL, else redis://127.0.0.1:6379; ``file://`` names a file with it."""
    if url is not None and not isinstance(url, str):
        raise InvalidRequest(f"the server URL must be text, like {DEFAULT_URL}, not {url!r:.100}")
    found = url or os.environ.get("SPOKE_URL") or DEFAULT_URL
    if found.startswith("file://"):
        found = _from_file(found)
    if _split(found).scheme not in (*PLAIN_SCHEMES, *LOCATED_SCHEMES):
        raise InvalidRequest(
            f"the server URL {mask_url(found)!r} must begin with redis://, rediss://, unix://, redis+sentinel://, "
            f"redis+cluster:// or file:// (docs: how-to/redis)"
        )
    return found


def resolve_pool(pool: str | None) -> str:
    """The pool's name: the argument, else SPOKE_POOL, else ``default``."""
    return pool or os.environ.get("SPOKE_POOL") or DEFAULT_POOL


def mask_url(url: str) -> str:
    """The URL without its passwords, fit for messages and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that do not match, for example
        return re.sub(r"//[^@/]*@", "//***@", url.partition("?")[0])
    netloc, query = parts.netloc, parts.query
    if ":" not in netloc.rpartition("@")[0] and "password" not in query:
        return url
    if "@" in netloc:
        user, _, rest = netloc.rpartition("@")
        if ":" in user:
            netloc = f"{user.partition(':')[0]}:***@{rest}"
    if "password" in query:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, "***" if "password" in name else value) for name, value in pairs], safe="*/")
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def has_password(url: str) -> bool:
    """Whether the URL holds a password."""
    return mask_url(url) != url


def parse_place(url: str) -> Place:
    """What a resolved URL says; raises InvalidRequest if it cannot be read."""
    try:
        return _parse(url)
    except ValueError as error:
        raise InvalidRequest(f"the server URL {mask_url(url)!r} cannot be read: {error}") from None


def _parse(url: str) -> Place:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Place("socket", (), _read_plain(url))
    if parts.scheme in ("redis", "rediss"):
        if not re.fullmatch(r"/?|/[0-9]+", unquote(parts.path)):
            raise ValueError(f"behind the host stands the number of a database, as in /0, and not {parts.path}")
        options = _read_plain(url)
        return Place("server", ((options.get("host", "localhost"), options.get("port", PORT)),), options)
    scheme, _, kind = parts.scheme.partition("+")
    login, _, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(text, SENTINEL_PORT if kind == "sentinel" else PORT) for text in hosts.split(","))
    service, _, path = parts.path.strip("/").partition("/") if kind == "sentinel" else ("", "", parts.path.strip("/"))
    if kind == "sentinel" and not service:
        raise ValueError("it must name the sentinels' service, as in redis+sentinel://host:26379/mymaster")
    if kind == "cluster" and path not in ("", "0"):
        raise ValueError("a cluster has no databases but 0")
    # redis-py reads user, password, database and options; the address is filled in when it is known
    at = f"{login}@" if login else ""
    options = _read_plain(urlunsplit(SplitResult(scheme, f"{at}localhost:{PORT}", f"/{path}", parts.query, "")))
    sentinel = {k: options.pop(f"sentinel_{k}") for k in ("username", "password") if f"sentinel_{k}" in options}
    tls = {k: v for k, v in options.items() if k.startswith("ssl_") or k == "connection_class"}
    for key in ("host", "port"):
        options.pop(key, None)
    if kind == "sentinel":
        return Place("sentinel", addresses, options, unquote(service), {**tls, **sentinel})
    return Place("cluster", addresses, options)


def _address(text: str, port: int) -> Address:
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise ValueError(f"{text!r} is no address: give HOST:PORT,HOST:PORT")
    return found.hostname, found.port or port


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise InvalidRequest(f"the server URL {mask_url(url)!r} cannot be read: {error}") from None


def _from_file(url: str) -> str:
    path = Path(unquote(_split(url).path))
    if not path.is_absolute():
        raise InvalidRequest(f"the server URL {url!r} names no file: write file:///PATH, the whole path of a file")
    try:
        with path.open("rb") as file:
            text = file.read(URL_FILE_BYTES_MAX + 1).decode().strip()
    except (OSError, ValueError) as error:  # also a name with a null byte, and what is no text
        raise InvalidRequest(f"the server URL was to be read from {path}: {error}") from error
    if len(text) > URL_FILE_BYTES_MAX or not text or len(text.split()) > 1:
        raise InvalidRequest(f"the file {path} must hold one server URL and nothing else")
    return text
