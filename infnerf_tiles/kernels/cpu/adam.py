"""Adam that skips entries without a gradient (Kingma and Ba 2015; the skip is instant-ngp's), in one pass."""

import math

from numba import njit, prange
from torch import Tensor

from infnerf_tiles.arrays import Float32, UInt8
from infnerf_tiles.kernels.arena import adam_scalars
from infnerf_tiles.kernels.cpu.threads import parallel_region


@njit(cache=True, parallel=True)
def _adam(
    value: Float32,
    gradient: Float32,
    first: Float32,
    second: Float32,
    touched: UInt8,
    rate: float,
    beta1: float,
    beta2: float,
    correction1: float,
    correction2: float,
    eps: float,
) -> None:
    width = value.shape[1]
    chunk = 256
    for part in prange((value.shape[0] + chunk - 1) // chunk):
        for b in range(part * chunk, min((part + 1) * chunk, value.shape[0])):
            if touched[b] == 0:
                continue
            touched[b] = 0
            for k in range(width):
                g = gradient[b, k]
                if g == 0.0:
                    continue
                m = beta1 * first[b, k] + (1.0 - beta1) * g
                v = beta2 * second[b, k] + (1.0 - beta2) * g * g
                first[b, k] = m
                second[b, k] = v
                value[b, k] -= rate * (m / correction1) / (math.sqrt(v / correction2) + eps)
                gradient[b, k] = 0.0


def adam(
    value: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    touched: Tensor,
    *,
    step: int = 0,
    rate: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    half: Tensor | None = None,
    scalars: Tensor | None = None,
    enabled: Tensor | None = None,
) -> None:
    """Update `value` in place, clear the gradient and the marks.

    Args:
        value, gradient, first, second: float32 [B, W], B blocks of W entries; entries with zero gradient keep their
            value and both moments.
        touched: uint8 [B]; blocks at 0 hold no gradient and are passed over.
        step: 1 at the first update (bias correction). rate: learning rate.
        half: float16 or bfloat16 [B, W], refreshed with the updated values of the touched blocks.
        scalars: float32 [3] in place of `step` and `rate`, what `adam_scalars` gives.
        enabled: uint8 [1]; at 0 nothing is updated, but the gradient and the marks are cleared.
    """
    if enabled is not None and not bool(enabled):
        gradient[touched != 0] = 0.0
        touched.zero_()
        return
    rate, correction1, correction2 = (
        adam_scalars(step, rate, beta1=beta1, beta2=beta2) if scalars is None else scalars.tolist()
    )
    moved = None if half is None else touched != 0
    with parallel_region():
        _adam(
            value.numpy(), gradient.numpy(), first.numpy(), second.numpy(), touched.numpy(),
            rate, beta1, beta2, correction1, correction2, eps,
        )  # fmt: skip
    if half is not None and moved is not None:
        half[moved] = value[moved].to(half.dtype)
