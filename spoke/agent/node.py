"""What an agent finds on its machine: what the node says of itself, and what watches its GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import import_module

from spoke.agent import inventory, topology
from spoke.agent.config import AgentConfig
from spoke.agent.health import Health, HealthMonitor, source_of
from spoke.agent.nvml import NvmlSource
from spoke.agent.ports import HeldPorts
from spoke.errors import InvalidRequest
from spoke.events.model import NodeSpec
from spoke.protocol.version import PROTOCOL
from spoke.version import release_version

log = logging.getLogger("spoke.agent")


def node_spec(config: AgentConfig, ports: HeldPorts) -> NodeSpec:
    """What the node says of itself; raises InvalidRequest for a setting that makes no sense."""
    if config.cpus is not None and not 0 <= config.cpus <= 2**20:
        raise InvalidRequest(f"cpus must be a number of cores from 0 to {2**20}, not {config.cpus!r}")
    found = _topology(config)
    return NodeSpec(
        node_id=config.node_id,
        host=inventory.host_name(),
        address=config.address or inventory.routable_address(config.url),
        machine=inventory.machine_id(),
        gpus=found.gpus,
        cpu_milli=inventory.cpu_milli() if config.cpus is None else round(config.cpus * 1000),
        memory=inventory.memory_bytes() if config.memory is None else config.memory,
        ports=ports.range,
        labels=dict(config.labels),
        imports=config.imports,
        allow_commands=config.allow_commands,
        pid=os.getpid(),
        version=release_version(),
        nics=found.nics,
        topology=found.topology,
        protocol=PROTOCOL,
    )


def _topology(config: AgentConfig) -> topology.Found:
    """The GPUs and NICs, and how near they are to each other as far as that can be found out."""
    gpus, nics = inventory.find_gpus(config.gpus, config.node_id), inventory.find_nics()
    if config.topology is not None:
        return topology.from_file(config.topology, gpus, nics)
    if config.gpus != "auto" or not gpus:
        return topology.Found(gpus, nics, None)
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        try:
            return topology.from_nvml(gpus, nics, nvml)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        log.warning("the topology of the GPUs is not known, and they are taken for equally near: NVML says %s", error)
        return topology.Found(gpus, nics, None)


def check_key(config: AgentConfig) -> None:
    """Raise InvalidRequest for a key that is not this node's."""
    signer = config.key.signer if config.key is not None else None
    if signer is not None and (signer.kind != "node" or signer.name not in ("*", config.node_id)):
        raise InvalidRequest(
            f"the key is {signer}'s, and this is node {config.node_id}: give it the key node:{config.node_id} "
            f"(`spoke key issue`)"
        )


def health_monitor(config: AgentConfig, spec: NodeSpec, tell: Callable[[Health], object]) -> HealthMonitor | None:
    """What watches the GPUs' health: the source that the settings name, else NVML for real GPUs; else nothing does."""
    if config.health:
        return HealthMonitor(source_of(config.health, spec.gpus), tell)
    if config.gpus != "auto" or not spec.gpus:
        return None
    nvml = import_module("pynvml")
    try:
        return HealthMonitor(NvmlSource(nvml, spec.gpus), tell)
    except nvml.NVMLError as error:
        log.error("nobody watches the health of the GPUs: NVML answers %r", str(error))
        return None
