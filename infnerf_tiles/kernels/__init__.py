"""The four kernels (`march`, `encode`, `composite`, `adam`) behind one door; the device chooses the twin.

`reference` is plain torch and the oracle of the tests, `cpu` is numba. A CUDA twin has the same function names and
arguments and takes its place in `for_device`.
"""

import importlib
from types import ModuleType

import torch

from infnerf_tiles.kernels.arena import Arena, PackedSamples, Rays, Samples

__all__ = ["Arena", "PackedSamples", "Rays", "Samples", "for_device"]


def for_device(device: torch.device) -> ModuleType:
    """Return the module that holds `march`, `encode`, `composite` and `adam` for tensors on `device`.

    The numba twin serves the CPU. Any other device runs the plain torch twin, which is slow but right.
    """
    # imported on demand: numba takes a second to load
    twin = "cpu" if device.type == "cpu" else "reference"
    return importlib.import_module(f"{__name__}.{twin}")
