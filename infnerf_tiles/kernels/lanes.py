"""Rays that take turns: a table of all that are to be drawn, and lanes for those in work."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Rays

GIVEN, LEFT, SAMPLES = range(3)


@dataclass(frozen=True, kw_only=True)
class RayTable:
    """What is known of Q rays, on one device."""

    directions: Tensor
    """float64 [Q, 3]: unit world directions divided by the root cube's edge."""
    basis: Tensor
    """float32 [Q, 16]: direction basis."""
    colour: Tensor
    """float32 [Q, 3], premultiplied."""
    transmittance: Tensor
    """float32 [Q]."""
    depth: Tensor
    """float32 [Q]: sum of weight times distance, world units."""
    facts: Tensor
    """float32 [Q, 2]: sums of weight times drawn level, and of the weights."""
    next_step: Tensor
    """int64 [Q]: lattice step to go on from, -1 when the ray has left the root cube."""

    @classmethod
    def fresh(cls, directions: Tensor, basis: Tensor) -> Self:
        """Rays that have not begun."""
        num, device = directions.shape[0], directions.device
        return cls(
            directions=directions,
            basis=basis,
            colour=torch.zeros((num, 3), device=device),
            transmittance=torch.ones(num, device=device),
            depth=torch.zeros(num, device=device),
            facts=torch.zeros((num, 2), device=device),
            next_step=torch.zeros(num, dtype=torch.int64, device=device),
        )


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """P places for rays in work. All rays come from one point and have one footprint."""

    ray: Tensor
    """int32 [P]: row of the ray table, -1 where there is none."""
    start: Tensor
    """int64 [P]: lattice step to go on from; below 0 where there is no ray, or it has left the root cube."""
    rays: Rays
    """The packet as `march_packed` takes it."""
    basis: Tensor
    """float32 [P, 16]. This and the next four as in the ray table."""
    colour: Tensor
    """float32 [P, 3]."""
    transmittance: Tensor
    """float32 [P]."""
    depth: Tensor
    """float32 [P]."""
    facts: Tensor
    """float32 [P, 2]."""
    status: Tensor
    """int64 [3]: rays given to lanes so far, lanes in work, samples drawn so far."""

    @property
    def num(self) -> int:
        return int(self.ray.shape[0])

    @classmethod
    def allocate(cls, num: int, device: torch.device) -> Self:
        """Lanes without rays."""
        real = torch.float64
        return cls(
            ray=torch.full((num,), -1, dtype=torch.int32, device=device),
            start=torch.full((num,), -1, dtype=torch.int64, device=device),
            rays=Rays(
                origins=torch.zeros((num, 3), dtype=real, device=device),
                directions=torch.ones((num, 3), dtype=real, device=device),
                footprint=torch.ones(num, dtype=real, device=device),
                offset=torch.full((num,), 0.5, dtype=real, device=device),
            ),
            basis=torch.zeros((num, 16), device=device),
            colour=torch.zeros((num, 3), device=device),
            transmittance=torch.ones(num, device=device),
            depth=torch.zeros(num, device=device),
            facts=torch.zeros((num, 2), device=device),
            status=torch.zeros(3, dtype=torch.int64, device=device),
        )

    def clear(self, origin: Tensor, footprint: float, offset: float) -> None:
        """Forget all rays; those to come start at `origin` (float64 [3], unit cube)."""
        self.ray.fill_(-1)
        self.start.fill_(-1)
        self.status.zero_()
        self.rays.origins.copy_(origin.expand(self.num, 3))
        self.rays.footprint.fill_(footprint)
        self.rays.offset.fill_(offset)
