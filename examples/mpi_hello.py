"""A program of mpi4py with no Spoke in it: who runs where, and a sum over all ranks."""

from __future__ import annotations

import os

from mpi4py import MPI

everyone = MPI.COMM_WORLD
total = everyone.allreduce(everyone.rank)
lines = everyone.gather(
    f"rank {everyone.rank} of {everyone.size} on {os.environ['SPOKE_NODE']}, "
    f"GPUs {os.environ['CUDA_VISIBLE_DEVICES']}, sum {total}"
)
if lines:
    print("\n".join(lines), flush=True)
