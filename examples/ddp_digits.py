"""Train on handwritten digits with torch's DistributedDataParallel. There is no Spoke code in here.

spoke run --nodes 2 --actors-per-node 2 --gpus-per-actor 1 -- python examples/ddp_digits.py

The rank, the world size and the master's address come from the environment that Spoke sets, under the names that
``init_process_group("env://")`` reads. On nodes with real GPUs, ``nccl`` in the place of ``gloo`` is the only change,
with ``model.cuda()``: each process sees its own GPUs and no others.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

HELD_OUT = 360
ACCURACY_MIN = 0.93


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="env://")
    rank = dist.get_rank()
    gpus, master = os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ["MASTER_ADDR"]
    print(f"rank {rank} of {dist.get_world_size()}, pid {os.getpid()}, GPUs [{gpus}], master {master}", flush=True)

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images))
    x = torch.tensor(images / 16.0, dtype=torch.float32)[order]
    y = torch.tensor(labels)[order]
    train = TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT])
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=options.batch, sampler=sampler)

    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(())
        for batch_x, batch_y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch_x), batch_y)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        mean = total / len(loader)
        dist.all_reduce(mean)
        if rank == 0 and (epoch % 5 == 0 or epoch == options.epochs - 1):
            print(f"epoch {epoch:2d}  loss {mean.item() / dist.get_world_size():.4f}", flush=True)

    with torch.no_grad():
        accuracy = (model(x[-HELD_OUT:]).argmax(dim=1) == y[-HELD_OUT:]).double().mean().item()
    if rank == 0:
        print(f"accuracy on {HELD_OUT} held-out digits: {accuracy:.4f}", flush=True)
    dist.destroy_process_group()
    return 0 if accuracy > ACCURACY_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
