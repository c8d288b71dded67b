"""An inference engine's life: a mixed gang, configuration before launch, health, streamed tokens, a restart.

    python examples/engine.py                       everything on this machine
    python examples/engine.py --url redis://...     on a pool whose agents have --import examples/engine_actors.py and
                                                    --allow-commands

Two nodes are the stages of a pipeline, two ranks on each share the tensors, and a controller without a GPU drives them.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from engine_actors import alone

import spoke

STAGES, TENSOR_PARALLEL, COUNT = 2, 2, 8
CONFIG = {"seed": 7, "prime": 65_521, "vocabulary": 211, "width": 32, "layers": 4, "stages": STAGES}
PROMPT = [3, 14, 159]
WAIT_S = 60.0
ATTEMPTS = 3
WORKERS = {"worker": "EngineWorker"}
CLEAN_UP = spoke.ExitHook(["sh", "-c", 'rm -rf "${TMPDIR:-/tmp}/$ENGINE_RUN-$RANK"'])  # also after a kill -9
CARE = spoke.Supervision(exit_hook=CLEAN_UP)


class Engine:
    """The engine as its user sees it."""

    def __init__(self, client: spoke.Client) -> None:
        groups = [
            spoke.Group("worker", STAGES, TENSOR_PARALLEL, spoke.Resources(gpus=1)),
            spoke.Group("controller", 1, 1, spoke.Resources(cpus=0.5)),
        ]
        self.gang = client.gang_allocate(groups=groups, name="engine", timeout=WAIT_S).result(WAIT_S)
        self.ranks = self.gang.ranks("worker")
        for slot in self.gang:  # the configuration phase: every place is known, nothing runs
            print(f"rank {slot.global_rank}: {slot.group} on {slot.node_id}, GPUs {list(slot.gpu_ids)}")
        print(f"all meet at rank 0, {self.gang.slots[0].node_id}")
        self.start()

    def start(self) -> None:
        """Start workers and controller, and wait until all are ready."""
        env = {"ENGINE_RUN": f"engine-{secrets.token_hex(8)}"}
        workers = self.gang.launch(WORKERS, env=env, supervision=CARE).result(WAIT_S)
        configured = [worker.call("configure", CONFIG) for worker in workers]  # they wait for each other
        print("configured by", Path(configured[0].result(WAIT_S)).name)
        for future in configured:
            future.result(WAIT_S)
        args = {"config": CONFIG, "workers": len(workers)}
        (self.controller,) = self.gang.launch({"controller": "EngineController"}, args).result(WAIT_S)
        print("ready:", all(worker["ready"] for worker in self.health()))

    def health(self) -> list[dict[str, Any]]:
        """What each worker says of itself."""
        said: list[dict[str, Any]] = self.controller.call("health").result(WAIT_S)
        return said

    def generate(self, prompt: list[int], count: int) -> list[int]:
        """Print tokens as they come. When a worker dies meanwhile, start all of them anew and generate again."""
        for _ in range(ATTEMPTS):
            tokens = []
            try:
                for token in self.controller.stream("generate", prompt, count):
                    print(token, end=" ", flush=True)
                    tokens.append(token)
            except (spoke.ActorError, spoke.ActorUnreachable):
                gone = [worker["rank"] for worker in self.health() if not worker["ready"]]
                if not gone:
                    raise  # a bug of ours: starting anew would not help
                print(f"... not ready any more: ranks {gone}")
                self.restart()
            else:
                print()
                return tokens
        raise RuntimeError(f"workers died {ATTEMPTS} times in a row")

    def restart(self) -> None:
        """Stop what is left, and start all of it again at the same places: a process group cannot lose one member."""
        for actor in self.gang.actors:
            actor.stop().result(WAIT_S)
        self.gang.wait(WAIT_S).result(WAIT_S)
        for rank, end in self.gang.exits.items():
            if end.phase == "lost":  # with its node: another place for this rank
                self.gang.repair(rank).result(WAIT_S)
        self.start()


def main() -> int:
    """Generate; kill a worker; generate the same again. 0 if every token is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the server of a running pool (default: start everything here)")
    parser.add_argument("--pool", default="engine")
    options = parser.parse_args()
    if options.url:
        return serve(options.url, options.pool, kill=False)
    from digits import everything_here  # the example beside this one

    with everything_here(options.pool, Path(__file__).with_name("engine_actors.py").resolve()) as url:
        return serve(url, options.pool, kill=True)


def serve(url: str, pool: str, *, kill: bool) -> int:
    """Use an engine, and check what it says."""
    expected = alone(CONFIG, PROMPT, COUNT)
    with spoke.Client(url, pool=pool) as client:
        engine = Engine(client)
        right = engine.generate(PROMPT, COUNT) == expected
        if kill:
            victim = next(actor for actor in engine.gang.actors if actor.rank == engine.ranks[-1])
            print(f"kill -9 of rank {victim.rank}")
            os.kill(victim.pid, signal.SIGKILL)
            right = engine.generate(PROMPT, COUNT) == expected and right
        print("every token is right:", right)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
