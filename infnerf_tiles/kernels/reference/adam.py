"""Adam that skips entries without a gradient, in plain torch."""

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import adam_scalars


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
        value, gradient, first, second: float [B, W], B blocks of W entries; entries with zero gradient keep their
            value and both moments.
        touched: uint8 [B]; blocks at 0 hold no gradient and are passed over.
        step: 1 at the first update (bias correction). rate: learning rate.
        half: float16 or bfloat16 [B, W], refreshed with the updated values of the touched blocks.
        scalars: float32 [3] in place of `step` and `rate`, what `adam_scalars` gives.
        enabled: uint8 [1]; at 0 nothing is updated, but the gradient and the marks are cleared.
    """
    with torch.no_grad():
        rate, correction1, correction2 = (
            adam_scalars(step, rate, beta1=beta1, beta2=beta2) if scalars is None else scalars.tolist()
        )
        moves = (touched != 0)[:, None] & (gradient != 0)
        if enabled is None or bool(enabled):
            g = gradient.double()
            m = beta1 * first.double() + (1.0 - beta1) * g
            v = beta2 * second.double() + (1.0 - beta2) * g * g
            direction = (m / correction1) / ((v / correction2).sqrt() + eps)
            for stored, updated in ((first, m), (second, v), (value, value.double() - rate * direction)):
                stored.copy_(torch.where(moves, updated, stored.double()))
            if half is not None:
                half.copy_(torch.where((touched != 0)[:, None], value.to(half.dtype), half))
        gradient.masked_fill_(moves, 0.0)
        touched.zero_()
