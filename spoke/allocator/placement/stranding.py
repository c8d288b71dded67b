"""What a placement costs in GPUs that become hard to use: the score by which pools with shares are packed.

Two charges, in integers throughout (``SCALE`` stands for a thousandth of a GPU). *Stranded*: free GPUs for which their
node has too little CPU left, measured by the CPU that granted members had for each GPU so far. *Broken*: what is left
of a shared GPU, which no whole-GPU member can use; a small rest weighs more for each of its thousandths.
The aim is that of fragmentation gradient descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023): take the
node that loses the least. Instead of a sample of typical tasks it needs two sums, which the fold keeps.
"""

from __future__ import annotations

from spoke.allocator.placement.pack import allows, has_port
from spoke.events.model import GPU_MILLI, GangSpec
from spoke.events.state import NodeState, PoolState, need_of

POLICY = "stranding/1"
SCALE = 2 * GPU_MILLI

Key = tuple[int, int, int, str]


def free_gpu_milli(node: NodeState) -> int:
    """All that is free of a node's GPUs, in thousandths."""
    shared = node.shared
    rests = len(shared) * GPU_MILLI - sum(shared.values()) if shared else 0
    return node.free_gpus.bit_count() * GPU_MILLI + rests


def stranding(state: PoolState, node: NodeState, milli: int, cpu_milli: int) -> int:
    """How much more would be stranded on a node if so much of its GPUs and CPU were taken (thousandths of a GPU)."""
    per_cpu, per_gpu = state.demand_gpu_milli, state.demand_cpu_milli
    if not per_gpu:
        return 0
    free, cpu = free_gpu_milli(node), node.free_cpu_milli
    before = free - cpu * per_cpu // per_gpu
    after = free - milli - (cpu - cpu_milli) * per_cpu // per_gpu
    return (after if after > 0 else 0) - (before if before > 0 else 0)


def broken(rest: int, share: int) -> int:
    """How much more of a GPU is a broken rest when a share is taken of the ``rest`` thousandths that are free."""
    left = rest - share
    before = rest * (SCALE - rest) if rest < GPU_MILLI else 0
    return left * (SCALE - left) - before


def best_node(state: PoolState, spec: GangSpec) -> str:
    """The node for a gang of whole GPUs or none, all on one node; empty if no node fits."""
    need = need_of(spec).times(spec.actors_per_node)
    best: Key | None = None
    for node in state.nodes.values():
        cpu, whole = node.free_cpu_milli, node.free_gpus.bit_count()
        if whole < need.gpus or cpu < need.cpu_milli or node.free_memory < need.memory or node.phase != "up":
            continue
        if not has_port(node) or not allows(spec, node):
            continue
        lost = stranding(state, node, need.gpus * GPU_MILLI, need.cpu_milli)
        if need.gpus:
            key = (lost + whole, 1, cpu, node.spec.node_id)
        else:  # nodes without GPUs first
            key = (lost, len(node.spec.gpus) and 1, cpu + free_gpu_milli(node), node.spec.node_id)
        if best is None or key < best:
            best = key
    return best[3] if best else ""
