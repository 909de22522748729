"""Where one treelet hands over to the one above: both draw the sample, and their opacities are mixed.

Mixing densities instead would pass from one picture to the other within a small part of the band: of matter that is
many optical depths thick, a hundredth is opaque still. Mixed opacities follow `blend` evenly, whatever the density.
"""

import torch
from torch import Tensor

_OPAQUE = 60.0
"""Optical depth behind which nothing is seen in float32; a cap, so that the difference of two can be exponentiated."""


def hand_over(sigma: Tensor, sigma_above: Tensor, blend: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Density of samples whose opacity is blend * own + (1 - blend) * above's, and what the own colour counts in them.

    Differentiable; any floating point type.

    Args:
        sigma: [M], density of the sample's own treelet. sigma_above: [M], of the one above; 0 where it is empty.
        blend: [M], in [0, 1]. dt: [M], length of the samples, in the unit of 1 / sigma.

    Returns:
        (density [M], share [M] in [0, 1]): the colour of the sample is share * own + (1 - share) * above's. Where blend
        is 1, density is sigma and share is 1, to the last bit.
    """
    own, above = (sigma * dt).clamp(max=_OPAQUE), (sigma_above * dt).clamp(max=_OPAQUE)
    least = torch.minimum(own, above).detach()
    through = blend * torch.exp(least - own) + (1.0 - blend) * torch.exp(least - above)
    density = (least - torch.log(through)) / dt.clamp(min=torch.finfo(dt.dtype).tiny)
    alpha, alpha_above = -blend * torch.expm1(-own), -(1.0 - blend) * torch.expm1(-above)
    both = alpha + alpha_above
    share = torch.where(both > 0, alpha / both.clamp(min=torch.finfo(both.dtype).tiny), blend)
    whole = blend >= 1.0
    return torch.where(whole, sigma, density), torch.where(whole, torch.ones_like(share), share)
