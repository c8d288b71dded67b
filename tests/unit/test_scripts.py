"""Scripts on servers that know flags, and on older ones that do not."""

from __future__ import annotations

import fakeredis
import pytest
from redis.exceptions import ResponseError

from spoke.protocol import scripts
from spoke.protocol.keys import Keys
from spoke.protocol.leases import renew_lease


def test_a_server_that_knows_no_flags_runs_the_scripts_without() -> None:
    old, keys = fakeredis.FakeRedis(), Keys("p")  # knows as little of flags as Redis 6.2
    old.zadd(keys.leases, {"node:n1:a": 1e15})
    assert renew_lease(old, keys, "node:n1:a", 1_000)
    assert old in scripts._OLD
    assert not renew_lease(old, keys, "node:n1:b", 1_000)
    assert scripts.Script("spoke.protocol", "renew.lua").load(old)


def test_another_error_is_not_taken_for_an_old_server() -> None:
    with pytest.raises(ResponseError, match="NOPERM"):
        scripts._note_old(fakeredis.FakeRedis(), ResponseError("NOPERM no"))
