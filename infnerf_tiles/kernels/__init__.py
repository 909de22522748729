"""The kernels (`march`, `encode`, `composite`, `adam` and others) behind one door; the device chooses the twin.

`reference` is plain torch and the oracle of the tests, `cpu` is numba, `cuda` is Triton.
"""

import functools
import importlib
import importlib.util
import logging
from types import ModuleType

import torch

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.kernels.arena import Arena, PackedSamples, Rays, Samples

__all__ = ["Arena", "PackedSamples", "Rays", "Samples", "chosen_device", "for_device"]


_log = logging.getLogger(__name__)


def for_device(device: torch.device) -> ModuleType:
    """Return the module that holds `march`, `encode`, `composite` and `adam` for tensors on `device`.

    The numba twin serves the CPU, the Triton twin CUDA. Any other device, and CUDA without Triton, runs the plain torch
    twin, which is slow but right.
    """
    # imported on demand: numba takes a second to load, and Triton may be missing
    twin = "cpu" if device.type == "cpu" else "cuda" if device.type == "cuda" and _has_triton() else "reference"
    return importlib.import_module(f"{__name__}.{twin}")


def chosen_device(choice: str) -> torch.device:
    """The device of a setting "auto", "cpu" or "cuda": auto takes CUDA where it and its kernels' compiler are there.

    SettingsError for "cuda" where there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        reason = "this torch has no CUDA" if torch.version.cuda is None else "no device is visible"
        raise SettingsError(
            f"device cuda: expected a CUDA device, got none ({reason}); use --device cpu or auto, "
            "or for train --set training.device=auto"
        )
    if choice == "cuda" or (choice == "auto" and torch.cuda.is_available() and _has_triton()):
        return torch.device("cuda")
    return torch.device("cpu")


@functools.cache
def _has_triton() -> bool:
    """Whether Triton is installed; the first call warns where it is not."""
    found = importlib.util.find_spec("triton") is not None
    if not found:
        _log.warning(
            "Triton is not installed, so kernels on the GPU run as plain torch, many times slower: pip install triton"
        )
    return found
