"""A client that does not mind in which pool: the pattern of the documentation."""

from __future__ import annotations

import contextlib
import itertools

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import FakeAgent, real_allocator

T_S = 30


def test_a_gang_is_found_in_whichever_pool_has_room(shared_server: EmbeddedServer, pool: str) -> None:
    url, full, roomy = shared_server.url, f"{pool}-full", f"{pool}-roomy"
    with contextlib.ExitStack() as stack:
        for name, gpus in ((full, 1), (roomy, 8)):
            stack.enter_context(real_allocator(url, name))
            stack.enter_context(FakeAgent(url, name, gpus=gpus))
        clients = [stack.enter_context(spoke.Client(url, pool=name)) for name in (full, roomy)]
        for client in itertools.cycle(clients):
            try:
                gang = client.gang_allocate(1, 4, spoke.Resources(gpus=1), timeout=0.2).result(T_S)
                break
            except spoke.AllocationError:
                continue
        assert client.pool == roomy
        assert [ticket.state for ticket in client.status().tickets] in ([], ["allocated"])
        assert not clients[0].status().tickets
        assert gang.release().result(T_S)
