"""Adam that skips entries without a gradient, in plain torch."""

import torch
from torch import Tensor


def adam(
    value: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    touched: Tensor,
    *,
    step: int,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
) -> None:
    """Update `value` in place, clear the gradient and the marks.

    Args:
        value, gradient, first, second: float [B, W], B blocks of W entries; entries with zero gradient keep their
            value and both moments.
        touched: uint8 [B]; blocks at 0 hold no gradient and are passed over.
        step: 1 at the first update (bias correction). rate: learning rate.
    """
    with torch.no_grad():
        moves = (touched != 0)[:, None] & (gradient != 0)
        g = gradient.double()
        m = beta1 * first.double() + (1.0 - beta1) * g
        v = beta2 * second.double() + (1.0 - beta2) * g * g
        direction = (m / (1.0 - beta1**step)) / ((v / (1.0 - beta2**step)).sqrt() + eps)
        for stored, updated in ((first, m), (second, v), (value, value.double() - rate * direction)):
            stored.copy_(torch.where(moves, updated, stored.double()))
        gradient.masked_fill_(moves, 0.0)
        touched.zero_()
