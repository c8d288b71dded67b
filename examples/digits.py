"""The demo: a gang of 2 x 2 actors trains a classifier of handwritten digits, and every GPU comes back.

    python examples/digits.py                       everything on this machine: a server, an allocator, two agents
    python examples/digits.py --url redis://...     on a pool whose agents have --import examples/digits_actors.py

Each actor computes gradients on its share of the digits. They travel over actor calls, are averaged here, and go back
to every actor, which takes the same step: data-parallel training.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import spoke
from spoke.cli.embedded import free_port
from spoke.events.log import EventLog
from spoke.events.state import PoolState, indices_of
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect

HERE = Path(__file__).resolve().parent
SPOKE = str(Path(sys.executable).with_name("spoke"))
NODES, ACTORS_PER_NODE, GPUS_PER_NODE = 2, 2, 4
STEPS, BATCH, RATE = 400, 48, 0.1
SHOWN = (0, 5, 10, 20, 50, 100, 200, 300)
ACCURACY_MIN = 0.93
WAIT_S = 60.0
STOP_S = 20.0
LOG_LINES = 12
T = TypeVar("T")


def main() -> int:
    """Run the demo; the exit code is 0 if the model is good, the log verifies, and every GPU is free again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the server of a running pool (default: start everything here)")
    parser.add_argument("--pool", default="demo")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.url:
        return demo(options.url, options.pool, options.seed)
    with everything_here(options.pool) as url:
        return demo(url, options.pool, options.seed)


def demo(url: str, pool: str, seed: int) -> int:
    """The demo on a pool that runs, or is about to."""
    began = time.monotonic()
    with spoke.Client(url, pool=pool) as client:
        say(f"Nodes register with the pool {pool!r}")
        nodes_before = wait_for_nodes(client)
        accuracy = train(client, seed)
        say("Every GPU is back")
        all_free = show_free_gpus(client, nodes_before)
    say(f"The end of the log (spoke log --url {url} --pool {pool})")
    for line in spoke_command("log", url, pool).splitlines()[-LOG_LINES:]:
        print(f"  {line}")
    say("The state, recovered from the log alone")
    same = show_recovered(url, pool)
    say("spoke audit verify")
    verified = spoke_command("audit verify", url, pool)
    print("\n".join(f"  {line}" for line in verified.splitlines()))
    print(f"\nDone in {time.monotonic() - began:.1f} s: accuracy {accuracy:.4f} on digits that nobody trained on.")
    return 0 if accuracy > ACCURACY_MIN and all_free and same else 1


# --- the part that a program of yours would have ---------------------------------------------------------------


def train(client: spoke.Client, seed: int) -> float:
    """Allocate, launch, train, measure, release; the accuracy on held-out digits."""
    say(f"A gang of {NODES} x {ACTORS_PER_NODE} actors with 1 GPU each asks for its places")
    resources = spoke.Resources(gpus=1)
    with client.gang_allocate(NODES, ACTORS_PER_NODE, resources, name="digits", timeout=WAIT_S).result(WAIT_S) as gang:
        print(f"  ticket {gang.ticket_id}: granted as a whole; master {gang.master_addr}:{gang.master_port}")
        for slot in gang:
            print(f"  rank {slot.global_rank} -> {slot.node_id} ({slot.host}), GPU {', '.join(map(str, slot.gpu_ids))}")

        say("Its actors start")
        workers = gang.launch("DigitsWorker", {"seed": seed, "batch": BATCH, "rate": RATE}).result(WAIT_S)
        for worker, place in zip(workers, everyone(workers, "place"), strict=True):
            print(
                f"  {worker.id} runs on {place['node']} as pid {place['pid']}, sees "
                f"CUDA_VISIBLE_DEVICES={place['gpus']}, holds {place['digits']} digits"
            )

        say(f"They train: {STEPS} steps of {BATCH} digits each, gradients averaged over actor calls")
        for step in range(STEPS):
            parts = everyone(workers, "gradients", step)
            mean = [np.mean(arrays, axis=0) for arrays in zip(*(part[1] for part in parts), strict=True)]
            everyone(workers, "apply", mean)
            if step in (*SHOWN, STEPS - 1):
                loss = float(np.mean([part[0] for part in parts]))
                print(f"  step {step:3d}  loss {loss:.4f}  {'#' * round(loss * 20)}")

        accuracy = float(workers[0].call("accuracy").result(WAIT_S))
        models = everyone(workers, "weights")
        alike = all(np.array_equal(a, b) for model in models for a, b in zip(model, models[0], strict=True))
        print(f"  accuracy on held-out digits: {accuracy:.4f}; all {len(workers)} copies of the model equal: {alike}")
    return accuracy  # leaving the block gave everything back


def everyone(workers: Sequence[spoke.ActorHandle], method: str, *args: Any) -> list[Any]:
    """Call a method of all workers at once; their results, by rank."""
    return results([worker.call(method, *args) for worker in workers])


def results(futures: Sequence[Future[T]]) -> list[T]:
    """What all of these futures come to."""
    return [future.result(WAIT_S) for future in futures]


# --- what is shown around it -----------------------------------------------------------------------------------


def wait_for_nodes(client: spoke.Client) -> tuple[spoke.NodeStatus, ...]:
    """Print the nodes as they register, until there are enough of them."""
    deadline, seen = time.monotonic() + WAIT_S, set[str]()
    while True:
        nodes = tuple(node for node in client.status().nodes if node.state == "up")
        for node in nodes:
            if node.node_id not in seen:
                seen.add(node.node_id)
                print(f"  {node.node_id} is up: {node.gpus} GPUs ({node.gpu_model}), {node.cpus:g} cores, {node.host}")
        if len(nodes) >= NODES:
            return nodes
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(nodes)} of {NODES} nodes registered within {WAIT_S:g} s: see the agents' output")
        time.sleep(0.05)


def show_free_gpus(client: spoke.Client, before: Sequence[spoke.NodeStatus]) -> bool:
    """Print what is free on each node; whether it is what was free before. The view may be a moment late."""
    free_before = {node.node_id: node.gpus_free for node in before}
    deadline = time.monotonic() + STOP_S
    while True:
        nodes = client.status().nodes
        same = free_before == {node.node_id: node.gpus_free for node in nodes if node.node_id in free_before}
        if same or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for node in nodes:
        print(f"  {node.node_id}: {len(node.gpus_free)} of {node.gpus} GPUs free {list(node.gpus_free)}")
    return same


def show_recovered(url: str, pool: str) -> bool:
    """Fold the whole log, and compare with what the pool itself shows; whether they agree."""
    keys = Keys(pool)
    with contextlib.closing(connect(url)) as redis, spoke.Client(url, pool=pool) as client:
        state: PoolState = EventLog(redis, keys.events, keys.snapshot).replay()
        views = {node.node_id: node.gpus_free for node in client.status().nodes}
    folded = {node_id: indices_of(node.free_gpus) for node_id, node in state.nodes.items()}
    for node_id, free in sorted(folded.items()):
        print(f"  {node_id}: {len(free)} of {len(state.nodes[node_id].spec.gpus)} GPUs free")
    print(f"  live tickets: {len(state.tickets)}, waiting: {len(state.queue)}, epoch {state.epoch}")
    print(f"  the replayed log and the live pool agree: {folded == views}")
    return folded == views


def say(text: str) -> None:
    """A headline."""
    print(f"\n== {text}", flush=True)


def spoke_command(words: str, url: str, pool: str) -> str:
    """What a ``spoke`` command prints; raises CalledProcessError if it fails."""
    command = [SPOKE, *words.split(), "--url", url, "--pool", pool]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_S).stdout.rstrip()


@contextlib.contextmanager
def everything_here(pool: str, actors: Path = HERE / "digits_actors.py") -> Iterator[str]:
    """``spoke up`` as a process of its own, with its data in a directory that goes afterwards; gives the URL."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="spoke-demo-") as data:
        command = [
            *(SPOKE, "up", "--agents", str(NODES), "--gpus", str(GPUS_PER_NODE), "--pool", pool),
            *("--port", str(port), "--data", data, "--import", str(actors)),
        ]
        print(f"$ spoke {' '.join(command[1:])}", flush=True)
        log = Path(data) / "up.log"
        with open(log, "wb") as out:
            up = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # it ends with us
        try:
            wait_for_port(port, up)
            yield f"redis://127.0.0.1:{port}"
        except BaseException:
            print(f"--- spoke up said:\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
            raise
        finally:
            up.send_signal(signal.SIGTERM)
            try:
                up.wait(STOP_S)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()


def wait_for_port(port: int, up: subprocess.Popen[bytes]) -> None:
    """Wait until the server takes connections; raises SystemExit if it does not, or ``spoke up`` ended."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        if up.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"`spoke up` did not bring up a server on port {port}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
