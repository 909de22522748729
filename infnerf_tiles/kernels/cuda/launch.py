"""Starting a Triton kernel on the device that its tensors are on."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

DEFAULTS: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of kernels that say nothing else; Triton's own default differs between its versions."""


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run `kernel` as a one-dimensional grid of `programs`; none is no launch.

    The first tensor among the arguments names the device, which need not be the current one.
    """
    if programs <= 0:
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **{**DEFAULTS, **options})


def programs_for(rows: int, block: int) -> int:
    """Programs of `block` rows each that cover `rows` rows."""
    return -(-rows // block)
