"""The engine's actors: workers that share a model by tensor and pipeline parallelism, and a controller.

The model is a toy, in whole numbers, so that its tokens can be checked to the last bit. How it is laid over the ranks
is what an inference engine does: each node is a stage of the pipeline, and its ranks share every matrix of the stage.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import spoke

Array = npt.NDArray[np.int64]
WAIT_S = 60.0


class Model:
    """A stack of layers, ``hidden`` to ``hidden``, modulo a prime."""

    def __init__(self, config: dict[str, int]) -> None:
        self.prime, self.vocabulary, width = config["prime"], config["vocabulary"], config["width"]
        draw = np.random.default_rng(config["seed"]).integers
        self.embedding: Array = draw(0, 9, (self.vocabulary, width))
        self.layers = [
            (draw(0, 9, (width, 4 * width)), draw(0, 9, (4 * width, width))) for _ in range(config["layers"])
        ]

    def embed(self, hidden: Array, token: int) -> Array:
        """What goes into the first layer."""
        mixed: Array = (3 * hidden + self.embedding[token]) % self.prime
        return mixed

    def next_token(self, hidden: Array) -> int:
        """What the last layer's output says."""
        return int(np.argmax(self.embedding @ hidden % self.prime))

    def forward(self, hidden: Array, layers: range, part: int, parts: int, add_up: Callable[[Array], Array]) -> Array:
        """Some layers, of which this is one part; ``add_up`` gives the sum over the parts."""
        for at in layers:
            up, down = self.layers[at]
            wide, narrow = np.array_split(up, parts, 1)[part], np.array_split(down, parts, 0)[part]
            hidden = add_up((hidden @ wide % self.prime) @ narrow) % self.prime
        return hidden


def alone(config: dict[str, int], prompt: list[int], count: int) -> list[int]:
    """What the whole model says in one process: what the engine must say, too."""
    model, tokens = Model(config), list(prompt)
    hidden = np.zeros(config["width"], np.int64)
    for at in range(len(prompt) + count - 1):
        every = range(config["layers"])
        hidden = model.forward(model.embed(hidden, tokens[at]), every, 0, 1, lambda part: part)
        if at >= len(prompt) - 1:
            tokens.append(model.next_token(hidden))
    return tokens[len(prompt) :]


@spoke.register_actor("EngineWorker")
class EngineWorker(spoke.Actor):
    """One rank: the part ``local_rank`` of the stage ``group_rank``."""

    max_concurrency = 1  # steps one after the other; `health` is async, so it answers meanwhile

    def __init__(self) -> None:
        self.steps = 0
        self.ready = False

    def configure(self, config: dict[str, int]) -> str:
        """Write the configuration file, load the weights, and meet the others; where the file is."""
        ctx = self.ctx
        folder = Path(tempfile.gettempdir(), f"{os.environ['ENGINE_RUN']}-{ctx.rank}")  # the exit hook removes it
        folder.mkdir(mode=0o700)
        (folder / "engine.json").write_text(json.dumps({**config, "rank": ctx.rank, "gpus": list(ctx.gpu_ids)}))
        self.model = Model(config)
        self.last_stage = config["stages"] - 1
        each = config["layers"] // config["stages"]
        self.layers = range(ctx.group_rank * each, (ctx.group_rank + 1) * each)
        self.add_up = torch_group(ctx) or self.add_up_by_messages
        self.ready = True
        return str(folder / "engine.json")

    async def health(self) -> dict[str, Any]:
        """Whether it is ready, and what it has done."""
        return {"rank": self.ctx.rank, "node": self.ctx.node_id, "ready": self.ready, "steps": self.steps}

    def step(self, hidden: Array | None, number: int) -> Array | None:
        """One pass through this stage: in from the stage before, out to the one after; the last one returns it."""
        ctx, width = self.ctx, self.ctx.local_world_size
        if hidden is None:
            hidden = ctx.recv(ctx.rank - width, tag=number).result(WAIT_S)
        hidden = self.model.forward(hidden, self.layers, ctx.local_rank, width, self.add_up)
        self.steps += 1
        if ctx.group_rank == self.last_stage:
            return hidden if ctx.local_rank == 0 else None
        ctx.send(ctx.rank + width, hidden, tag=number).result(WAIT_S)
        return None

    def add_up_by_messages(self, part: Array) -> Array:
        """The sum over the ranks of this stage, without torch."""
        ctx = self.ctx
        first = ctx.rank - ctx.local_rank
        others = [rank for rank in range(first, first + ctx.local_world_size) if rank != ctx.rank]
        sent = [ctx.send(rank, part, tag=0) for rank in others]
        total = part + sum(ctx.recv(rank, tag=0).result(WAIT_S) for rank in others)
        for future in sent:
            future.result(WAIT_S)
        summed: Array = total
        return summed


def torch_group(ctx: spoke.ActorContext) -> Callable[[Array], Array] | None:
    """The sum over this stage's ranks by torch.distributed, or None where there is no torch.

    Workers come first in the gang, so rank 0, at whose address all meet, is a worker; MASTER_PORT is kept free there.
    """
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        return None
    if dist.is_initialized():
        dist.destroy_process_group()
    meet = f"tcp://{ctx.master_addr}:{ctx.master_port}"
    dist.init_process_group("gloo", init_method=meet, rank=ctx.rank_in_group, world_size=ctx.group_size)
    stages = range(0, ctx.group_size, ctx.local_world_size)
    groups = [dist.new_group(list(range(first, first + ctx.local_world_size))) for first in stages]

    def add_up(part: Array) -> Array:
        total = torch.from_numpy(part)
        dist.all_reduce(total, group=groups[ctx.group_rank])
        summed: Array = total.numpy()
        return summed

    return add_up


@spoke.register_actor("EngineController")
class EngineController(spoke.Actor):
    """Takes prompts, drives the workers, and streams the tokens back. It has no GPU."""

    def __init__(self, config: dict[str, int], workers: int) -> None:
        self.config = config
        self.model = Model(config)
        self.workers = [self.ctx.peer(rank) for rank in range(workers)]
        self.stage = workers // config["stages"]
        self.turn = threading.Lock()
        self.number = 0

    def generate(self, prompt: list[int], count: int) -> Iterator[int]:
        """Tokens, one after the other, as they are made: a stream for whoever called."""
        hidden, token = np.zeros(self.config["width"], np.int64), prompt[0]
        for at in range(len(prompt) + count - 1):
            hidden = self.step(self.model.embed(hidden, token))
            if at < len(prompt) - 1:
                token = prompt[at + 1]
            else:
                token = self.model.next_token(hidden)
                yield token

    def step(self, hidden: Array) -> Array:
        """One pass through all stages. It fails when a worker is gone, and so does the stream."""
        with self.turn:
            self.number += 1
            passed = [
                worker.call("step", hidden if rank < self.stage else None, self.number)
                for rank, worker in enumerate(self.workers)
            ]
            (found,) = [out for out in (future.result(WAIT_S) for future in passed) if out is not None]
        result: Array = found
        return result

    def health(self) -> list[dict[str, Any]]:
        """What every worker says; one that cannot be reached is not ready."""
        return [health_of(worker) for worker in self.workers]


def health_of(worker: Any) -> dict[str, Any]:
    """A worker's health, or why there is none."""
    try:
        said: dict[str, Any] = worker.call("health").result(5.0)
    except spoke.SpokeError as error:
        said = {"rank": worker.rank, "ready": False, "error": str(error).splitlines()[0]}
    return said
