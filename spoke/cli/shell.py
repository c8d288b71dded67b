"""``spoke shell``: the command line of redis-cli for the pool's server, or redis-cli itself; never with a password."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from spoke.cli.options import Pool, Url
from spoke.cli.output import clean, complain
from spoke.errors import InvalidRequest, SpokeError

if TYPE_CHECKING:
    from spoke.protocol.url import Place

PROGRAMS: Final = ("redis-cli", "valkey-cli")
PASSWORD_IN: Final = "REDISCLI_AUTH"  # both programs read it
_TLS: Final = (
    ("ssl_ca_certs", "--cacert"),
    ("ssl_ca_path", "--cacertdir"),
    ("ssl_certfile", "--cert"),
    ("ssl_keyfile", "--key"),
    ("ssl_ciphers", "--tls-ciphers"),
)


class NoShell(SpokeError):
    """There is no redis-cli on this machine."""

    code = "no_redis_cli"


def shell(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="A command for the server; else a prompt.")
    ] = None,
    url: Url = None,
    pool: Pool = None,
    execute: Annotated[
        bool, typer.Option("--exec", help="Run it here (redis-cli or valkey-cli must be installed).")
    ] = False,
) -> None:
    """Print the redis-cli command line for the pool's server: of a sentinels' service its present primary, of a
    cluster the node that has the pool. A password is left out: redis-cli takes it from REDISCLI_AUTH.
    """
    from spoke.protocol.url import parse_place, resolve_pool, resolve_url

    place = parse_place(resolve_url(url))
    found = next((program for program in PROGRAMS if shutil.which(program)), "")
    command = [found or PROGRAMS[0], *arguments(place, resolve_pool(pool)), *(words or ())]
    password = place.options.get("password")
    if execute:
        if not found:
            raise NoShell(
                "neither redis-cli nor valkey-cli is on this machine's path: install one (apt install redis-tools), or "
                "run the line that `spoke shell` prints where one is"
            )
        sys.stdout.flush()
        os.execvpe(found, command, {**os.environ, **({PASSWORD_IN: str(password)} if password else {})})
    print(clean(shlex.join(command)))
    if password and not os.environ.get(PASSWORD_IN):
        complain(
            f"the URL holds a password, which is not shown. Hand it over by {PASSWORD_IN}, so that it is on no command "
            f"line:\nread -rs {PASSWORD_IN} && export {PASSWORD_IN}\nor let `spoke shell --exec` do both"
        )


def arguments(place: Place, pool: str) -> list[str]:
    """What redis-cli needs to reach a place. Raises ServerError where a sentinel or a cluster must be asked in vain."""
    from redis.connection import SSLConnection

    options = place.options
    if place.kind == "socket":
        words = ["-s", str(options["path"])]
    else:
        host, port = _address(place, pool)
        words = ["-h", host, "-p", str(port)]
    if place.kind == "cluster":
        words.append("-c")
    if options.get("username"):
        words += ["--user", str(options["username"])]
    if options.get("db"):
        words += ["-n", str(options["db"])]
    if options.get("connection_class") is SSLConnection:
        if options.get("ssl_ca_data"):
            raise InvalidRequest(
                "redis-cli reads an authority from a file only: give ssl_ca_certs in place of ssl_ca_data"
            )
        words.append("--tls")
        for option, word in _TLS:
            if options.get(option):
                words += [word, str(options[option])]
        if str(options.get("ssl_cert_reqs", "required")) in ("none", "0"):
            words.append("--insecure")
    return words


def _address(place: Place, pool: str) -> tuple[str, int]:
    from spoke.protocol.located import locator
    from spoke.protocol.server import explained

    if place.kind == "server":
        host, port = place.addresses[0]
        return host, int(port)
    with explained(_shown(place)):
        return locator(place, pool)()


def _shown(place: Place) -> str:
    hosts = ",".join(f"{host}:{port}" for host, port in place.addresses)
    return f"redis+{place.kind}://{hosts}" + (f"/{place.service}" if place.service else "")
