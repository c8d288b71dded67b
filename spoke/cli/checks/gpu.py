"""The GPUs and their driver, as ``spoke doctor`` finds them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from spoke.cli.checks.finding import ABSENT, OK, WARNING, Finding


def _gpus() -> Finding:
    return nvml(import_module)


def nvml(load: Callable[[str], Any], *, device: str = "/dev/nvidiactl") -> Finding:
    """Whether GPUs can be detected, and by which driver. ``device`` is there where the driver is loaded."""
    from spoke.agent.inventory import NoGpuDriver, find_gpus

    try:
        found = find_gpus("auto", "doctor", load_nvml=load, env={})
    except NoGpuDriver as error:
        if not os.path.exists(device):
            return Finding("GPUs", ABSENT, str(error))
        text, remedy = str(error), "see `nvidia-smi`"
        if isinstance(error.__cause__, ImportError):
            remedy = "pip install 'spoke-scheduler[nvml]'"
        elif "version mismatch" in text.lower():
            remedy = "the driver was updated while it was loaded: restart the machine (or the container)"
        return Finding("GPUs", WARNING, text, remedy)
    if not found:
        return Finding("GPUs", WARNING, "NVML reports none", "see `nvidia-smi`; a container needs --gpus all")
    models = Counter(gpu.model for gpu in found)
    text = ", ".join(f"{number} x {model}" for model, number in models.items())
    return Finding("GPUs", OK, f"{text}{driver(load)}")


def driver(load: Callable[[str], Any]) -> str:
    """The driver's version and the CUDA that it can run, in words; empty where it does not say."""
    library = load("pynvml")
    try:
        library.nvmlInit()
        try:
            version = library.nvmlSystemGetDriverVersion()
            cuda = int(library.nvmlSystemGetCudaDriverVersion())
        finally:
            library.nvmlShutdown()
    except library.NVMLError:
        return ""
    version = version.decode() if isinstance(version, bytes) else version
    return f"; driver {version}, for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"


def _visible() -> Finding:
    return visible(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))


def visible(devices: str | None, order: str | None) -> Finding:
    """Whether this shell's variables would hide GPUs from an agent that is started in it."""
    if devices is not None:
        return Finding(
            "CUDA variables", WARNING, f"CUDA_VISIBLE_DEVICES is {devices!r}: an agent started here offers only those",
            "unset it before you start an agent, unless that is meant",
        )  # fmt: skip
    if order not in (None, "PCI_BUS_ID"):
        return Finding(
            "CUDA variables", WARNING, f"CUDA_DEVICE_ORDER is {order!r}: programs started by hand count GPUs otherwise",
            "unset it; actors get PCI_BUS_ID in any case",
        )  # fmt: skip
    return Finding("CUDA variables", OK, "hide nothing")


CHECKS: Final = (_gpus, _visible)
