"""The reference of keys, from ``spoke.protocol.keys``."""

from __future__ import annotations

import inspect

from prose import NOTE, doc

from spoke.protocol import keys, leases
from spoke.protocol.keys import Keys, client_lease, node_lease

ARGUMENTS = {"ticket_id": "<ticket>", "node_id": "<node>", "client_id": "<client>", "reader": "<reader>"}


def render() -> str:
    """The page."""
    pool = Keys("POOL")
    rows = ["| key | what it is |", "|---|---|"]
    for name, member in vars(Keys).items():
        if name.startswith("_") or not (isinstance(member, property) or inspect.isfunction(member)):
            continue
        if isinstance(member, property):
            key = getattr(pool, name)
        else:
            parameters = list(inspect.signature(member).parameters.values())[1:]
            arguments = [ARGUMENTS[one.name] for one in parameters if one.default is inspect.Parameter.empty]
            key = getattr(pool, name)(*arguments)
        rows.append(f"| `{key}` | {doc(member)} |")
    table = "\n".join(rows)
    return f"""{NOTE.format(source="spoke/protocol/keys.py")}
# Keys

{doc(keys)} The part in braces is that tag.

{table}

## Leases

{doc(leases)} The holders are called `{client_lease("<client>")}` and `{node_lease("<node>", "<incarnation>")}`; an
incarnation is one run of a node's agent. Deadlines are in milliseconds of the server's own clock, which the scripts
read with `TIME`; nobody else's clock counts.

## Reading along with redis-cli

Streams and views hold text and JSON, so nothing but `redis-cli` is needed to follow a pool:

```console
$ redis-cli XREVRANGE 'spoke:{{default}}:events' + - COUNT 5
$ redis-cli HGETALL 'spoke:{{default}}:nodes'
$ redis-cli HGETALL 'spoke:{{default}}:ticket:t-1'
$ redis-cli ZRANGE 'spoke:{{default}}:leases' 0 -1 WITHSCORES
```

[Look with redis-cli](../how-to/redis-cli.md) has ten commands with what they print.

Only the snapshot, actors' arguments and secrets are for programs. An access list that lets people read along without
showing them secrets allows `%R~spoke:*:nodes` and its like, but not `spoke:*:secret:*`; see
[Security](../security.md#users-of-the-server).
"""
