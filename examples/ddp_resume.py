"""Train with torch's DistributedDataParallel, save checkpoints, and go on from the last one after a restart.

spoke run --torch --max-restarts 3 --nodes 2 --actors-per-node 2 examples/ddp_resume.py --checkpoint /shared/digits.pt

It is a script for torchrun, and has no Spoke code in it. When a rank dies, all ranks are stopped and started again;
they read the checkpoint and go on. The checkpoint must lie where every node can read it. With ``--die-at EPOCH`` one
rank kills itself at that epoch, once, so that this can be seen.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

HELD_OUT = 360
ACCURACY_MIN = 0.93


def save(path: Path, epoch: int, model: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint: all of it or none, whenever this is interrupted."""
    beside = path.with_suffix(".tmp")
    torch.save({"epoch": epoch, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}, beside)
    os.replace(beside, path)


@record  # type: ignore[untyped-decorator]
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--die-at", type=int, default=-1)
    options = parser.parse_args()

    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method="env://")
    rank, restarts = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images))
    x = torch.tensor(images / 16.0, dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    train = TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT])
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=32, sampler=sampler)

    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    first = 0
    if options.checkpoint.exists():
        found = torch.load(options.checkpoint, weights_only=True)
        model.module.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        first = found["epoch"] + 1
    print(f"rank {rank} of {dist.get_world_size()} begins at epoch {first}, restart {restarts}", flush=True)

    for epoch in range(first, options.epochs):
        if epoch == options.die_at and restarts == 0 and rank == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        sampler.set_epoch(epoch)
        for batch_x, batch_y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch_x), batch_y).backward()
            optimizer.step()
        if rank == 0:
            save(options.checkpoint, epoch, model, optimizer)
        dist.barrier()

    with torch.no_grad():
        accuracy = (model(x[-HELD_OUT:]).argmax(dim=1) == y[-HELD_OUT:]).double().mean().item()
    if rank == 0:
        print(f"accuracy on {HELD_OUT} held-out digits: {accuracy:.4f}", flush=True)
    dist.destroy_process_group()
    return 0 if accuracy > ACCURACY_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
