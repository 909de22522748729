"""Evidence for growth and for trained levels, gathered from the very samples that training draws."""

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Int64
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, PackedSamples, Samples

MIN_WEIGHT = 0.1
"""A sample speaks for content only where it carries that share of its ray."""
MIN_PHOTOS = 3
"""Photos that must agree before an octant grows: a floater near one camera has a tiny footprint."""


class Evidence:
    """What the samples of a training say about its nodes; one row per own slot."""

    def __init__(self, slots: int, occupancy_cells: int, device: torch.device | None = None):
        self.seen = torch.full((slots,), -1.0, device=device)
        """float32 [slots]: largest wanted level of a sample that carried weight."""
        self.count = torch.zeros((slots, 8), dtype=torch.int32, device=device)
        """int32 [slots, 8]: samples per octant that wanted at least half a level more than the node has."""
        self.photos = torch.zeros((slots, 8), dtype=torch.int64, device=device)
        """int64 [slots, 8]: bit set over 63 groups of photos that those samples came from."""
        self.edge = occupancy_cells
        self.reached = torch.zeros((slots, occupancy_cells**3), dtype=torch.int32, device=device)
        """int32 [slots, O^3]: when a ray last reached a cell before it ended, in whatever unit the caller counts."""

    def note(
        self,
        samples: Samples | PackedSamples,
        weight: Tensor,
        photo: Tensor,
        arena: Arena,
        now: Tensor,
        enabled: Tensor | None = None,
    ) -> None:
        """Add the samples of one step; nothing waits for the device.

        Args:
            weight: float32 [M], share of its ray that a sample carries. photo: int64 [Q], of each ray.
            now: int32 [1], the step's time. enabled: uint8 [1]; at 0 nothing is noted.
        """
        for_device(arena.device).note(
            samples.slot, samples.wanted, weight, samples.position, photo, samples.ray, arena,
            min_weight=MIN_WEIGHT, seen=self.seen, wanting=self.count, photos=self.photos, reached=self.reached,
            now=now, count=samples.count if isinstance(samples, PackedSamples) else None, enabled=enabled,
        )  # fmt: skip

    def octants(self, min_count: int) -> tuple[Int64, Int64]:
        """(slot, octant) pairs with enough samples from enough photos."""
        photos, count = self.photos.cpu().numpy(), self.count.cpu().numpy()
        bits = np.zeros(photos.shape, np.int32)
        for b in range(63):
            bits += ((photos >> b) & 1).astype(np.int32)
        slot, octant = np.nonzero((count >= min_count) & (bits >= MIN_PHOTOS))
        return slot.astype(np.int64), octant.astype(np.int64)

    def forget(self) -> None:
        """Start counting afresh after a growth step; trained levels stay."""
        self.count.zero_()
        self.photos.zero_()
