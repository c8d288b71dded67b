"""The first code in an actor's process: read the launch document, build the actor, serve calls, run.

Every import here is in every actor's start: no redis, no asyncio, no numpy.
"""

from __future__ import annotations

import _thread
import inspect
import json
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Final

import msgpack

from spoke.agent.actor import Actor, ActorContext, registered_actors
from spoke.agent.peers import Peers
from spoke.agent.runtime import Runtime
from spoke.errors import SpokeError
from spoke.protocol.notice import Notice
from spoke.transport import CallServer, unpack

DOCUMENT_FD: Final = 3
STATUS_FD: Final = 4
RING: Final = signal.SIGRTMIN + 7
_FOR_MAIN: Final = (signal.SIGTERM, signal.SIGINT)
FAILURE_LINES: Final = 15
FAILURE_CHARACTERS: Final = 3_500
CLOSE_S: Final = 2.0


class StartFailure(SpokeError):
    """The actor cannot start; the text is all that needs saying."""

    code = "start_failed"


def main() -> None:
    """Run the actor that the launch document describes, and exit."""
    os.set_inheritable(STATUS_FD, False)
    with open(DOCUMENT_FD, "rb") as file:
        document = msgpack.unpackb(file.read())
    try:
        actor, server, runtime = _start(document)
    except BaseException as error:  # SystemExit too: an import that ends the process is no start
        traceback.print_exc()
        _say({"failed": _words(error)})
        sys.exit(1)
    _say({"ready": {"address": server.address}})
    try:
        _run(actor)
    finally:
        runtime.close(CLOSE_S)


def _start(document: dict[str, Any]) -> tuple[Actor, CallServer, Runtime]:
    context = document["context"]
    tuples = {name: tuple(context[name]) for name in ("gpu_ids", "gpu_uuids", "nics")}
    ctx = ActorContext(**{**context, **tuples})
    secret = document["secret"]
    peers = Peers(ctx.rank, ctx.actor_id, ctx.ticket_id, document["directory"], secret)
    runtime = Runtime(ctx.rank, ctx.world_size, peers, secret)
    ctx._runtime.append(runtime)
    _stop_on_sigterm(ctx)
    signal.pthread_sigmask(signal.SIG_BLOCK, (RING,))  # before there are other threads, which inherit it
    _import_all(document["imports"], document["cwd"])
    actor = _build(document["type_name"], ctx, document["args"])
    advertise = document["advertise"]
    host = advertise if advertise in ("127.0.0.1", "::1") else "::" if ":" in advertise else "0.0.0.0"
    workers = actor.max_concurrency
    server = CallServer(actor, secret=secret, host=host, advertise=advertise, workers=workers)
    runtime.serve(server, actor.healthy)
    server.start()
    threading.Thread(target=_hear, args=(actor, peers), name="spoke-notices", daemon=True).start()
    return actor, server, runtime


def _stop_on_sigterm(ctx: ActorContext) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        # The event's lock may be held by the very thread that is interrupted here: another one must set it.
        _thread.start_new_thread(ctx.stopping.set, ())

    signal.signal(signal.SIGTERM, stop)


def _hear(actor: Actor, peers: Peers) -> None:
    """Wait to be rung, and tell the actor what is new. A thread, since the main one may be deep in a library.

    Whichever thread is just awake may take a signal that is for the process; were it this one, the main thread would
    not wake up for it. So they are blocked here, but for ``on_notice``, whose processes would inherit that.
    """
    last = 0
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_MAIN)
    while True:
        signal.sigwait((RING,))
        try:
            for number, notice in peers.notices():
                if number > last:
                    last = number
                    _tell(actor, notice)
        except Exception:
            traceback.print_exc()


def _tell(actor: Actor, notice: Notice) -> None:
    if type(actor).on_notice is Actor.on_notice:
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_MAIN)
    try:
        actor.on_notice(notice)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_MAIN)


def _import_all(imports: list[str], cwd: str) -> None:
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    for name in imports:
        if name.endswith(".py"):
            _import_file(os.path.join(cwd, name))
        else:
            __import__(name)


def _import_file(path: str) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    if not os.path.isfile(path):
        raise StartFailure(f"--import {path}: there is no such file on this node; give the agent a path that exists")
    name = os.path.basename(path)[: -len(".py")]
    loaded = sys.modules.get(name)
    if loaded is not None and os.path.realpath(getattr(loaded, "__file__", None) or "") == os.path.realpath(path):
        return
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartFailure(f"--import {path}: Python cannot load this file")
    module = module_from_spec(spec)
    sys.path.insert(1, os.path.dirname(path))  # it may import its neighbours
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _build(type_name: str, ctx: ActorContext, packed_args: bytes) -> Actor:
    known = registered_actors()
    cls = known.get(type_name)
    if cls is None:
        names = ", ".join(sorted(known)) or "none"
        raise StartFailure(
            f"there is no actor type {type_name!r} on this node; registered are: {names}. Give the agent --import of "
            f"the module that has @spoke.register_actor({type_name!r})"
        )
    args = unpack(packed_args) if packed_args else {}
    if not isinstance(args, dict):
        raise StartFailure(f"an actor's arguments are a dict, not {type(args).__name__}")
    actor = cls.__new__(cls)
    actor.ctx, actor.args = ctx, args
    takes_any = cls.__init__ is not object.__init__ and bool(inspect.signature(cls.__init__.__get__(actor)).parameters)
    actor.__init__(**(args if takes_any else {}))  # type: ignore[misc]
    return actor


def _run(actor: Actor) -> None:
    found = actor.run()
    if inspect.iscoroutine(found):
        import asyncio

        asyncio.run(found)


def _say(status: dict[str, Any]) -> None:
    """The one line that the keeper waits for. No descriptor stays open: a child would hold the pipe."""
    with open(STATUS_FD, "wb") as file:
        file.write(json.dumps(status).encode() + b"\n")


def _words(error: BaseException) -> str:
    """The last lines of the traceback, from the user's code on; of a failure that explains itself, the explanation."""
    if isinstance(error, StartFailure):
        return str(error)
    told = traceback.TracebackException.from_exception(error)
    while told.stack and (told.stack[0].filename == __file__ or told.stack[0].filename.startswith("<frozen importlib")):
        del told.stack[0]
    lines = "".join(told.format()).strip().splitlines()
    if not told.stack:
        lines = [line for line in lines if not line.startswith("Traceback ")]
    return "\n".join(lines[-FAILURE_LINES:])[-FAILURE_CHARACTERS:]


if __name__ == "__main__":
    main()
