"""``spoke allocator`` and ``spoke agent``: the daemons, in the foreground, logging to standard error."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Literal

import typer

from spoke.cli.metrics import MetricsAddress, serving
from spoke.cli.moments import parse_time, time_option
from spoke.cli.options import Pool, Url, parse_pairs
from spoke.cli.output import complain
from spoke.cli.tracing import Trace, traced
from spoke.errors import InvalidRequest

log = logging.getLogger("spoke.cli")

LOG_BYTES_MIN = 64 << 10
LOG_KEEP_S_MIN = 10.0


def log_to_stderr() -> None:
    """Log from INFO on, with times."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )


def _warn_of_password(url: str | None) -> None:
    from spoke.protocol.url import has_password

    if url and has_password(url):
        log.warning(
            "the password in --url can be read by everybody on this machine (ps): put the URL into a file that only "
            "this user can read, and give --url file:///that/file, or set SPOKE_URL"
        )


ServerWait = Annotated[
    float,
    time_option("At the start, wait so long for a server that is not there.", 60, "--wait-for-server"),
]


def allocator(
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="The master key: decide only requests that are signed."),
    ] = None,
    max_queue: Annotated[int, typer.Option(metavar="N", help="Gangs that may wait in line.")] = 10_000,
    max_waiting: Annotated[int, typer.Option(metavar="N", help="Gangs of one client that may wait.")] = 10_000,
    max_outstanding: Annotated[
        int, typer.Option(metavar="N", help="Undecided requests of one client; with more its session is ended.")
    ] = 20_000,
    max_gang: Annotated[int, typer.Option(metavar="N", help="Actors of one gang.")] = 16_384,
    max_args: Annotated[str, typer.Option(metavar="SIZE", help="Arguments of one launch.")] = "16MiB",
    wait_for_server: ServerWait = 60.0,
    metrics: MetricsAddress = None,
    trace: Trace = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Decide for a pool, until SIGTERM or Ctrl-C. Start two, and the second is the standby."""
    from spoke.allocator.limits import Limits
    from spoke.allocator.service import Allocator, AllocatorConfig
    from spoke.events.model import parse_bytes
    from spoke.protocol.arrival import check_wait
    from spoke.protocol.identity import read_masters
    from spoke.protocol.url import resolve_pool, resolve_url

    log_to_stderr()
    check_wait(wait_for_server)
    _warn_of_password(url)
    masters = () if keys is None else read_masters(keys)
    limits = Limits(max_queue, max_waiting, max_outstanding, max_gang, args_bytes=parse_bytes(max_args))
    config = AllocatorConfig(
        resolve_url(url),
        resolve_pool(pool),
        masters=masters,
        limits=limits,
        server_wait_s=wait_for_server,
        own_process=True,
    )
    meters = None
    if metrics:  # takes a tenth of a second to import
        from spoke.allocator.meters import Meters

        meters = Meters(config.pool)
    with traced(trace, "spoke-allocator") as tracing, serving(metrics, meters):
        spans = None
        if tracing is not None:
            from spoke.allocator.tracing import AllocatorTracing

            spans = AllocatorTracing(tracing, config.pool)
        service = Allocator(config, meters, tracing=spans)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        service.run()


def agent(
    gpus: Annotated[
        str, typer.Option(metavar="N|auto", help="How many logical GPUs; auto: the real ones, from NVML.")
    ] = "auto",
    node_id: Annotated[
        str | None, typer.Option("--node-id", metavar="ID", help="The node's name in the pool (default: the host's).")
    ] = None,
    cpus: Annotated[float | None, typer.Option(metavar="CORES", help="CPU cores to offer (default: all).")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to offer, like 64GiB (default: all).")
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module, or a .py file, that registers actor types."),
    ] = None,
    allow_commands: Annotated[
        bool, typer.Option("--allow-commands", help="Let clients run any command here (spoke run).")
    ] = False,
    log_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where actors' output goes (default: ~/.local/state/spoke/logs/POOL)."),
    ] = None,
    log_size: Annotated[
        str, typer.Option(metavar="SIZE", help="An actor's log is put aside at this size and a new one begun.")
    ] = "64MiB",
    log_files: Annotated[
        int, typer.Option(min=1, max=1_000, metavar="N", help="How many logs of an actor that were put aside are kept.")
    ] = 4,
    log_keep: Annotated[
        str, typer.Option(metavar="TIME", help="How long output is kept after its ticket's end, like 12h or 7d.")
    ] = "7d",
    log_total: Annotated[
        str,
        typer.Option(
            metavar="SIZE|PERCENT|off",
            help="What all output here may have together: where it has more, the oldest of ended tickets is removed.",
        ),
    ] = "20%",
    topology: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="How near GPUs and NICs are to each other, as YAML (default: asked of NVML)."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label of the node, for `--where` and the like.")
    ] = None,
    lease: Annotated[
        float,
        time_option("After so long without the server, the node's actors are killed.", 10),
    ] = 10.0,
    health_file: Annotated[
        str,
        typer.Option(
            "--health-file",
            metavar="FILE",
            envvar="SPOKE_HEALTH",
            help='A JSON file that names unhealthy GPUs, {"3": "why"}, read every second; or module:function. '
            "Default: NVML, for real GPUs.",
        ),
    ] = "",
    metrics: MetricsAddress = None,
    trace: Trace = False,
    address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where other nodes reach this one (default: found).")
    ] = "",
    wait_for_server: ServerWait = 60.0,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Serve this machine as a node of a pool, until SIGTERM or Ctrl-C (a second one: without grace).

    In a pool with a master key, SPOKE_KEY or the file SPOKE_KEY_FILE holds the key of this node.
    """
    from spoke.agent.config import AgentConfig, default_log_dir
    from spoke.agent.logs.room import parse_room
    from spoke.agent.service import run_agent
    from spoke.agent.watcher import watchers
    from spoke.events.model import parse_bytes
    from spoke.protocol.arrival import check_wait
    from spoke.protocol.identity import find_key
    from spoke.protocol.url import resolve_pool, resolve_url

    check_imports(imports or [])
    log_to_stderr()
    check_wait(wait_for_server)
    _warn_of_password(url)
    name = resolve_pool(pool)
    logs = (default_log_dir() / name if log_dir is None else log_dir).expanduser().absolute()
    labels = parse_labels(label or [], str(logs))
    if not 0.5 <= lease <= 86_400:
        raise InvalidRequest(f"--lease must be from 0.5 to 86400 seconds, not {lease:g}")
    keep_s = parse_time(log_keep)
    if keep_s < LOG_KEEP_S_MIN:
        raise InvalidRequest(f"--log-keep must be at least {LOG_KEEP_S_MIN:g} seconds, not {log_keep!r}")
    parse_room(log_total)
    log_bytes = parse_bytes(log_size)
    if not LOG_BYTES_MIN <= log_bytes <= 1 << 40:
        raise InvalidRequest(f"--log-size must be from 64KiB to 1TiB, not {log_size!r}")
    config = AgentConfig(
        url=resolve_url(url),
        pool=name,
        node_id=node_id if node_id is not None else host_as_name(),
        gpus=parse_gpus(gpus),
        imports=tuple(imports or ()),
        allow_commands=allow_commands,
        lease_ms=round(lease * 1000),
        log_dir=logs,
        labels=labels,
        cpus=cpus,
        memory=None if memory is None else parse_bytes(memory),
        address=address,
        topology=topology,
        key=find_key(),
        server_wait_s=wait_for_server,
        health=health_file,
        log_bytes=log_bytes,
        log_files=log_files,
        log_keep_s=keep_s,
        log_total=log_total,
    )
    meters = None
    if metrics:
        from spoke.agent.meters import Meters

        meters = Meters(name, config.node_id)
    with traced(trace, "spoke-agent") as tracing, serving(metrics, meters):
        spans = None
        if tracing is not None:
            from spoke.agent.tracing import AgentTracing

            spans = AgentTracing(tracing, name, config.node_id)
        run_agent(config, watchers(meters, spans), meters)


def parse_labels(pairs: list[str], logs: str) -> dict[str, str]:
    """The labels of a node: ``KEY=VALUE`` texts, and where its logs are; raises InvalidRequest."""
    from spoke.events.rules import check_labels
    from spoke.protocol.logs import LOG_DIR_LABEL

    labels = parse_pairs("--label", pairs)
    if len(labels) < len(pairs):
        twice = next(key for key in labels if sum(pair.startswith(f"{key}=") for pair in pairs) > 1)
        raise InvalidRequest(f"--label gives {twice} twice: a node has one value of each label")
    if LOG_DIR_LABEL in labels:
        raise InvalidRequest(f"--label {LOG_DIR_LABEL} is the agent's own: say where the logs go by --log-dir")
    check_labels("--label", labels)
    labels[LOG_DIR_LABEL] = logs
    check_labels("--log-dir", labels)
    return labels


def parse_gpus(text: str) -> int | Literal["auto"]:
    """``auto`` or a whole number; raises InvalidRequest."""
    if text == "auto":
        return "auto"
    if re.fullmatch(r"\d{1,6}", text, re.ASCII):
        return int(text)
    raise InvalidRequest(f"--gpus {text!r} cannot be read: give a number of logical GPUs, or auto")


def check_imports(imports: list[str]) -> None:
    """Raise InvalidRequest for a file that is not there, and warn of a module: an actor's directory may have it."""
    for name in imports:
        if name.endswith(".py") and not Path(name).is_file():
            raise InvalidRequest(f"--import {name}: there is no such file ({Path(name).absolute()})")
        package = name.partition(".")[0]
        if not name.endswith(".py") and PathFinder.find_spec(package, [os.getcwd(), *sys.path]) is None:
            complain(
                f"--import {name}: there is no module {package!r} in {os.getcwd()} or among the installed ones; actors "
                f"will not start unless their own directory has it"
            )


def host_as_name() -> str:
    """The host's name, as a node's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-") or "node"
