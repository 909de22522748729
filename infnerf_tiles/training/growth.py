"""Evidence for growth and for trained levels, gathered from the very samples that training draws."""

import numpy as np
from numba import njit

from infnerf_tiles.arrays import Float32, Int32, Int64

MIN_WEIGHT = 0.1
"""A sample speaks for content only where it carries that share of its ray."""
MIN_PHOTOS = 3
"""Photos that must agree before an octant grows: a floater near one camera has a tiny footprint."""


@njit(cache=True)
def _note(
    slot: Int32,
    wanted: Float32,
    weight: Float32,
    position: Float32,
    photo: Int64,
    ray: Int32,
    level: Int32,
    top_level: Int32,
    treelet: Int32,
    num_own: int,
    min_weight: float,
    seen: Float32,
    count: Int32,
    photos: Int64,
    reached: Int32,
    edge: int,
    now: int,
) -> None:
    for m in range(slot.shape[0]):
        s = slot[m]
        if s >= num_own:
            continue
        cells = 2.0 ** (level[s] - top_level[treelet[s]]) * edge
        cx = int(position[m, 0] * cells) % edge
        cy = int(position[m, 1] * cells) % edge
        cz = int(position[m, 2] * cells) % edge
        reached[s, (cz * edge + cy) * edge + cx] = now
        if weight[m] < min_weight:
            continue
        if wanted[m] > seen[s]:
            seen[s] = wanted[m]
        if wanted[m] < level[s] + 0.5:
            continue
        scale = 2.0 ** (level[s] - top_level[treelet[s]] + 1)
        child = (
            (int(position[m, 0] * scale) & 1)
            + 2 * (int(position[m, 1] * scale) & 1)
            + 4 * (int(position[m, 2] * scale) & 1)
        )
        count[s, child] += 1
        photos[s, child] |= np.int64(1) << (photo[ray[m]] % 63)


class Evidence:
    """What the samples of a training say about its nodes; one row per own slot."""

    def __init__(self, slots: int, occupancy_cells: int):
        self.seen = np.full(slots, -1.0, np.float32)
        """Largest wanted level of a sample that carried weight."""
        self.count = np.zeros((slots, 8), np.int32)
        """Samples per octant that wanted at least half a level more than the node has."""
        self.photos = np.zeros((slots, 8), np.int64)
        """Bit set over 63 groups of photos that those samples came from."""
        self.edge = occupancy_cells
        self.reached = np.zeros((slots, occupancy_cells**3), np.int32)
        """When a ray last reached a cell before it ended, in whatever unit the caller counts."""

    def note(
        self,
        slot: Int32,
        wanted: Float32,
        weight: Float32,
        position: Float32,
        photo: Int64,
        ray: Int32,
        links: tuple[Int32, Int32, Int32],
        now: int = 0,
    ) -> None:
        """Add the samples of one step. links: (level [S], top_level [R], treelet [S]) as in `Arena`. now: its time."""
        level, top_level, treelet = links
        _note(
            slot, wanted, weight, position, photo, ray, level, top_level, treelet,
            self.seen.shape[0], MIN_WEIGHT, self.seen, self.count, self.photos, self.reached, self.edge, now,
        )  # fmt: skip

    def octants(self, min_count: int) -> tuple[Int64, Int64]:
        """(slot, octant) pairs with enough samples from enough photos."""
        bits = np.zeros(self.photos.shape, np.int32)
        for b in range(63):
            bits += ((self.photos >> b) & 1).astype(np.int32)
        slot, octant = np.nonzero((self.count >= min_count) & (bits >= MIN_PHOTOS))
        return slot.astype(np.int64), octant.astype(np.int64)

    def forget(self) -> None:
        """Start counting afresh after a growth step; trained levels stay."""
        self.count[:] = 0
        self.photos[:] = 0
