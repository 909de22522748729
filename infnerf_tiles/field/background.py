"""Colour of rays that leave the root cube."""

from typing import Literal

import torch
from torch import Tensor, nn

BackgroundKind = Literal["sh", "white", "black", "constant", "random"]


class Background(nn.Module):
    """Colour by direction: spherical harmonics of 3 bands, one learned colour, white, black, or random per ray.

    "random" is drawn while training only (it keeps empty space empty); drawing shows black instead.
    """

    def __init__(self, kind: BackgroundKind):
        super().__init__()
        self.kind = kind
        size = {"sh": 9, "constant": 1}.get(kind, 0)
        self.coefficients = nn.Parameter(torch.zeros(size, 3))
        """float32 [bands^2, 3], before the sigmoid."""

    def forward(self, basis: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Colour float32 [Q, 3] for the direction basis [Q, 16]; `generator` draws the random one."""
        if self.kind in ("sh", "constant"):
            return torch.sigmoid(basis[:, : self.coefficients.shape[0]] @ self.coefficients)
        if self.kind == "random" and generator is not None:
            return torch.rand((basis.shape[0], 3), generator=generator, device=generator.device).to(basis.device)
        return basis.new_full((basis.shape[0], 3), 1.0 if self.kind == "white" else 0.0)
