"""What the user in use may do on the server: by trying, with commands that the server refuses for another reason.

``XADD key 0-0 …`` is an error everywhere, but one that comes after the user's rights were looked at. So nothing is
changed. A server with users notes in its ACL LOG what it refused for want of rights.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spoke.cli.checks.finding import BROKEN, OK, Finding, some

if TYPE_CHECKING:
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import Redis

Words = tuple[str | int, ...]
Need = tuple[Words, ...]
"""Commands of which one must be allowed: a user may be confined to names of its own."""
_NOBODY = "doctor"


def needs(keys: Keys, user: str) -> dict[str, list[Need]]:
    """What each role must be allowed, as deploy/users.acl has it."""
    script: Need = (("EVALSHA", "0" * 40, 0),)
    ask: Need = (("XADD", keys.requests, "0-0", "a", "b"),)
    renew: Need = (("ZADD", keys.leases, "nan?", _NOBODY),)
    hear: Need = tuple(("XREAD", "COUNT", 1, "STREAMS", keys.reply(f"{by}{_NOBODY}"), "$") for by in ("", f"{user}."))
    read_log: list[Need] = [(("XREVRANGE", keys.events, "+", "-", "COUNT", 1),), (("HGET", keys.snapshot, "id"),)]
    look: list[Need] = [(("HMGET", keys.leader, "holder"),), (("HGETALL", keys.ticket(_NOBODY)),)]
    orders = tuple(keys.node(name) for name in (_NOBODY, socket.gethostname(), user))
    secret = tuple(("SET", keys.secret(_NOBODY, owner), "x", "EX", "x?") for owner in ("", user))
    return {
        "allocator": [
            (("XADD", keys.events, "0-0", "a", "b"),),
            (("XTRIM", keys.requests, "MINID", "x?"),),
            (("HDEL", keys.nodes, "?"),),
            (("ZREM", keys.leases, "?"),),
            (("EXPIRE", keys.reply(_NOBODY), "x?"),),
            (("PERSIST", keys.node(_NOBODY)),),
            script,
        ],
        "agent": [
            tuple(("XREAD", "COUNT", 1, "STREAMS", key, "$") for key in orders),
            tuple(("XDEL", key, "0-1") for key in orders),
            ask,
            renew,
            script,
        ],
        "client": [ask, hear, renew, secret, *look, script],
        "operator": [ask, hear, renew, *read_log, *look, script],
        "auditor": [*read_log, *look, (("ZRANGE", keys.leases, 0, 0),)],
    }


def check_rights(redis: Redis, keys: Keys, user: str) -> Finding:
    """Try what each role needs."""
    from redis.exceptions import NoPermissionError

    wanted = needs(keys, user)
    words = list(dict.fromkeys(one for role in wanted.values() for need in role for one in need))
    pipe = redis.pipeline(transaction=False)
    for one in words:
        pipe.execute_command(*one)  # type: ignore[no-untyped-call]
    answers: list[Any] = pipe.execute(raise_on_error=False)
    refused = {one for one, answer in zip(words, answers, strict=True) if isinstance(answer, NoPermissionError)}
    missing = {
        role: [_said(need[0]) for need in role_needs if refused.issuperset(need)] for role, role_needs in wanted.items()
    }
    return rights(user, missing, {role: len(role_needs) for role, role_needs in wanted.items()})


def _said(words: Words) -> str:
    key = next((str(word) for word in words if str(word).startswith("spoke:")), "")
    return f"{words[0]} {key}".strip()


def rights(user: str, missing: Mapping[str, list[str]], of: Mapping[str, int]) -> Finding:
    """What the refusals mean; ``missing`` has for each role what it lacks, ``of`` how much it needs."""
    able = [role for role, lacks in missing.items() if not lacks]
    if able:
        return Finding("rights", OK, f"user {user} has the rights of: {', '.join(able)}")
    nearest, lacks = min(missing.items(), key=lambda item: len(item[1]) / of[item[0]])
    return Finding(
        "rights",
        BROKEN,
        f"user {user} of the server has the rights of no role; for {nearest} it lacks {some(lacks, 8)}",
        "give it those of a role in deploy/users.acl (ACL SETUSER, or the server's aclfile and ACL LOAD)",
    )
