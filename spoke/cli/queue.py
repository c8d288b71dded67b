"""``spoke queue``, ``quota`` and ``reserve``: who goes first, who has what by right, what is kept for whom."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer

from spoke.cli.moments import parse_time
from spoke.cli.node import ANSWER_S
from spoke.cli.options import Json, Pool, Url, opened
from spoke.cli.output import duration, local_time, part_of, say, size, table, write_json
from spoke.errors import InvalidRequest

queue = typer.Typer(no_args_is_help=True, help="How waiting gangs are ordered.")
quota = typer.Typer(no_args_is_help=True, help="What projects have by right.")
reserve = typer.Typer(no_args_is_help=True, help="Keep nodes for some gangs, for a time.")

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="A project; * stands for all without a quota.")]


@queue.command("show")
def show(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Show the queue's policy, and how many gangs wait."""
    from spoke.client.queue import read_queue

    with opened(url, pool) as place:
        found = read_queue(place.redis, place.keys)
    if json:
        write_json(_plain(found))
        return
    policy = found.policy
    table(
        ("order", "backfill", "preemption", "half-life", "notice", ">depth", ">waiting"),
        [
            (
                policy.order,
                "on" if policy.backfill else "off",
                "on" if policy.preempt else "off",
                duration(policy.half_life_ms),
                duration(policy.notice_ms),
                str(policy.depth),
                str(found.waiting),
            )
        ],
    )


@queue.command("policy")
def policy(
    order: Annotated[str | None, typer.Argument(metavar="[fifo|priority|fair]", help="The order.")] = None,
    backfill: Annotated[
        bool | None, typer.Option("--backfill/--no-backfill", help="Later gangs may start first if that delays none.")
    ] = None,
    preempt: Annotated[
        bool | None, typer.Option("--preempt/--no-preempt", help="Gangs may take the place of preemptible tickets.")
    ] = None,
    half_life: Annotated[
        str | None, typer.Option(metavar="TIME", help="After this time past use counts half in a fair order, like 24h.")
    ] = None,
    notice: Annotated[
        str | None, typer.Option(metavar="TIME", help="From the notice to the release of a ticket, like 30s.")
    ] = None,
    depth: Annotated[int | None, typer.Option(metavar="N", help="So many waiting gangs are looked at.")] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Order the queue by another policy from now on; what is not given stays as it is."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.set_queue_policy(
            order,  # type: ignore[arg-type]
            backfill=backfill,
            preempt=preempt,
            half_life=None if half_life is None else parse_time(half_life),
            notice=None if notice is None else parse_time(notice),
            depth=depth,
        ).result(ANSWER_S)
    say("the queue has the new policy." if changed else "the policy was so before.")


@quota.command("set")
def quota_set(
    project: Project,
    gpus: Annotated[float | None, typer.Option(metavar="N", help="GPUs by right; without: no limit.")] = None,
    cpus: Annotated[float | None, typer.Option(metavar="CORES", help="CPU cores by right.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory by right, like 512GiB.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes by right.")] = None,
    borrow: Annotated[
        bool, typer.Option("--borrow/--no-borrow", help="It may have more while that is idle; others can reclaim it.")
    ] = True,
    weight: Annotated[int, typer.Option(metavar="N", help="Its part in a fair order.")] = 1,
    max_priority: Annotated[
        int | None, typer.Option(metavar="N", help="The highest priority that its gangs may ask for.")
    ] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Give a project a quota, or another one. What it holds beyond it stays."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.set_quota(
            project,
            gpus=gpus,
            cpus=cpus,
            memory=memory,
            nodes=nodes,
            borrow=borrow,
            weight=weight,
            priority_max=max_priority,
        ).result(ANSWER_S)
    say(f"project {project} has the new quota." if changed else f"the quota of {project} was so before.")


@quota.command("remove")
def quota_remove(project: Project, url: Url = None, pool: Pool = None) -> None:
    """Take a project's quota away."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.remove_quota(project).result(ANSWER_S)
    say(f"project {project} has no quota now." if changed else f"project {project} had no quota.")


@quota.command("list")
def quota_list(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Show what projects have, and their quotas."""
    from spoke.client.queue import read_queue

    with opened(url, pool) as place:
        found = read_queue(place.redis, place.keys).projects
    if json:
        write_json(_plain(found))
        return

    def of(held: float, limit: float | None) -> str:
        return f"{held:g} of {limit:g}" if limit is not None else f"{held:g}"

    rows = []
    for one in found:
        limits: Any = one.quota
        gpus, cpus, memory, nodes = (None,) * 4 if limits is None else limits.limits
        rows.append(
            (
                one.project,
                of(one.gpus, None if gpus is None else gpus / 1000),
                of(one.cpus, None if cpus is None else cpus / 1000),
                part_of(one.memory, memory) if memory is not None else size(one.memory),
                of(one.nodes, nodes),
                "" if limits is None else "yes" if limits.borrow else "no",
                "1" if limits is None else str(limits.weight),
                "" if limits is None or limits.priority_max is None else str(limits.priority_max),
            )
        )
    if rows:
        table(("project", "gpus", "cpus", "memory", "nodes", "borrows", ">weight", ">max priority"), rows)
    else:
        say(f"No project has a quota, or holds anything, in pool {place.keys.pool}.")


@reserve.command("create")
def reserve_create(
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, like 90m or 2h.")],
    nodes: Annotated[int, typer.Option(metavar="N", help="How many nodes.")] = 1,
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that each of them has.")] = 0,
    start: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="When: now, in a time like +2h, or 2026-11-24T20:00.")
    ] = "now",
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Only its gangs may use it.")] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="A name to find it by.")] = "",
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Keep nodes for gangs that ask for the reservation."""
    import spoke

    start_s = parse_start(start, time.time())
    with spoke.Client(url, pool=pool) as client:
        asked = client.create_reservation(nodes, gpus, parse_time(length), start=start_s, project=project, name=name)
        made = asked.result(ANSWER_S)
    if json:
        write_json(_plain(made))
        return
    times = f"from {local_time(made.start_ms)} to {local_time(made.end_ms)}"
    say(f"{made.reservation_id}: {', '.join(made.nodes)} {times}; use it with --reservation {made.reservation_id}")


@reserve.command("list")
def reserve_list(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Show the reservations that have not ended."""
    from spoke.client.queue import read_queue

    with opened(url, pool) as place:
        found = read_queue(place.redis, place.keys).reservations
    if json:
        write_json(_plain(found))
        return
    rows = [
        (
            one.reservation_id,
            one.name or "-",
            local_time(one.start_ms),
            local_time(one.end_ms),
            one.project or "any",
            one.by,
            ", ".join(one.nodes),
        )
        for one in found
    ]
    if rows:
        table(("reservation", "name", "from", "to", "project", "by", "nodes"), rows)
    else:
        say(f"There is no reservation in pool {place.keys.pool}.")


@reserve.command("cancel")
def reserve_cancel(
    reservation: Annotated[str, typer.Argument(metavar="RESERVATION", help="Its id; see `spoke reserve list`.")],
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Give a reservation's nodes back to everybody; what was placed there stays."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        client.cancel_reservation(reservation).result(ANSWER_S)
    say(f"{reservation} is cancelled.")


def _plain(found: Any) -> Any:
    from msgspec import to_builtins

    return to_builtins(found)


def parse_start(text: str, now_s: float) -> float:
    """When a reservation begins, in seconds since 1970; raises InvalidRequest.

    >>> parse_start("now", 100.0), parse_start("+1m", 100.0)
    (0.0, 160.0)
    """
    if text == "now":
        return 0.0
    if text.startswith("+"):
        return now_s + parse_time(text[1:])
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidRequest(f"{text!r} is no time: write now, +2h, or 2026-11-24T20:00") from None
