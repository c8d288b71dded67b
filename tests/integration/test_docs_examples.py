"""Every public name has a docstring with an example, and the examples do what they say on a real pool."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.client.futures import GangFuture
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at
from tests.integration.examples import has_example, names_in, run_example

ROOT = Path(__file__).resolve().parents[2]
ACTORS = Path(__file__).with_name("docs_actors.py")
POOL = "docs"
WAIT_S = 40
INSIDE = {"BufferHandle.as_data", "Gang.memory_home"}
"""What Spoke's own parts ask of each other, and users need not know."""


def public() -> dict[str, Any]:
    """Every public class and function, and the methods and properties of the classes; inherited ones, too."""
    found: dict[str, Any] = {}
    for name in spoke.__all__:
        value = getattr(spoke, name)
        if not callable(value) or (name != value.__name__):  # a constant; another name of the same class
            continue
        found[name] = value
        if not inspect.isclass(value) or issubclass(value, Exception):
            continue
        for owner in value.__mro__:
            if not owner.__module__.startswith("spoke."):
                continue
            for member, what in vars(owner).items():
                is_ours = inspect.isfunction(what) or isinstance(what, (property, classmethod, staticmethod))
                if is_ours and not member.startswith("_"):
                    found.setdefault(f"{name}.{member}", what)
    return found


PUBLIC = public()
EXAMPLES = {name: what for name, what in PUBLIC.items() if name not in INSIDE}


def test_what_is_said_to_be_inside_exists() -> None:
    assert set(PUBLIC) >= INSIDE


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_has_a_docstring_with_an_example(name: str) -> None:
    assert has_example(inspect.getdoc(EXAMPLES[name])), f"{name} has no example (>>>) in its docstring"


class Place:
    """A pool of two nodes with four GPUs each, and what examples may use: made when one names it."""

    def __init__(self) -> None:
        self.client = spoke.Client()
        self.workers_gang = self.client.gang_allocate(2, 1, spoke.Resources(cpus=0.1)).result(WAIT_S)
        self.workers = self.workers_gang.launch("Worker").result(WAIT_S)
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.client.close()
        self.loop.close()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, WAIT_S))

    @contextlib.contextmanager
    def names(self, wanted: set[str], *, asynchronous: bool) -> Iterator[dict[str, Any]]:
        eventually(lambda: self.client.status().gpus_free == 8, "what the last example held is free again")
        with contextlib.ExitStack() as stack:
            found: dict[str, Any] = {"spoke": spoke}
            client = self.client
            if wanted & {"gang", "waiting"}:
                gang = stack.enter_context(client.gang_allocate(2, 1, spoke.Resources(gpus=1)).result(WAIT_S))
                found["gang"] = spoke.AsyncGang(gang) if asynchronous else gang
            if "mixed" in wanted:
                groups = [spoke.Group("controller"), spoke.Group("worker", num_nodes=2)]
                found["mixed"] = stack.enter_context(client.gang_allocate(groups=groups).result(WAIT_S))
            if "ended" in wanted:
                found["ended"] = stack.enter_context(client.gang_allocate(1, 2).result(WAIT_S))
                found["ended"].launch_command(["sh", "-c", "exit $RANK"]).result(WAIT_S)
                found["ended"].wait().result(WAIT_S)
            if "waiting" in wanted:
                future = client.gang_allocate(2, 4, spoke.Resources(gpus=1))
                stack.callback(future.cancel)
                eventually(future.pending_reason, "it waits in line")
                found["waiting"] = future
            found["client"] = client
            found["workers"] = self.workers
            if asynchronous:
                face = spoke.AsyncClient()
                face._client = client
                found["client"] = face
                found["workers"] = [spoke.AsyncActorHandle(worker) for worker in self.workers]
            found["worker"] = found["workers"][0]
            yield found
            for name in ("gang", "client", "actor", "actors"):  # what the example made under these names
                found.pop(name, None)
            found.clear()

    def tidy(self, *, reserved: bool) -> None:
        """Undo what an example may have changed in the pool itself."""
        if reserved:  # the views are written a moment behind
            (reservation,) = eventually(lambda: self.client.queue_status().reservations)
            self.client.cancel_reservation(reservation.reservation_id).result(WAIT_S)
            eventually(lambda: not self.client.queue_status().reservations)
        self.client.set_queue_policy("priority", half_life=86_400).result(WAIT_S)
        self.client.remove_quota("vision").result(WAIT_S)


@pytest.fixture(scope="module")
def place(shared_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("docs")
    with (
        pytest.MonkeyPatch.context() as patch,
        real_allocator(shared_server.url, POOL),
        pool_at(shared_server.url, POOL, directory) as agents,
    ):
        patch.setenv("SPOKE_URL", shared_server.url)
        patch.setenv("SPOKE_POOL", POOL)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        for node in ("node-0", "node-1"):
            agents.start_agent(node, gpus=4, imports=[str(ACTORS)], cpus=16)
        with spoke.Client() as watcher:
            eventually(lambda: watcher.status().gpus_free == 8, "both nodes")
        one = Place()
        yield one
        one.close()


RUN = {name: what for name, what in EXAMPLES.items() if has_example(inspect.getdoc(what))}


@pytest.mark.parametrize("name", RUN)
def test_the_example_does_what_it_says(name: str, place: Place) -> None:
    docstring = inspect.getdoc(RUN[name])
    assert docstring
    wanted = names_in(docstring)
    if "ctx" in wanted:
        assert place.workers[0].call("example", name, docstring).result(WAIT_S) == ""
        return
    with place.names(wanted, asynchronous=name.startswith("Async")) as names:
        problem = run_example(name, docstring, names, place.wait)
    if "create_reservation" in name or "set_q" in name:
        place.tidy(reserved="create_reservation" in name)
    assert problem == ""


def test_an_example_that_is_wrong_fails() -> None:
    assert "printed 2" in run_example("x", ">>> 1 + 1\n3\n", {})
    assert "raised nothing" in run_example("x", ">>> 1\nTraceback (most recent call last):\nValueError: ...\n", {})
    assert "ZeroDivisionError" in run_example("x", ">>> 1 / 0\n", {})
    assert run_example("x", ">>> import asyncio\n>>> await asyncio.sleep(0, 'done')\n'done'\n", {}) == ""
    assert GangFuture().pending_reason() is None
