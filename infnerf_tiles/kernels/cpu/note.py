"""What samples say about nodes: how fine they were seen, where more is wanted, which cells rays reached."""

import numpy as np
from torch import Tensor

from infnerf_tiles.arrays import Float32, Int32, Int64
from infnerf_tiles.compiled import njit
from infnerf_tiles.kernels.arena import Arena


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
    dead: bool,
) -> None:
    for m in range(slot.shape[0]):
        s = slot[m]
        if s >= num_own or (dead and not weight[m] > 0.0):
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


def note(
    slot: Tensor,
    wanted: Tensor,
    weight: Tensor,
    position: Tensor,
    photo: Tensor,
    ray: Tensor,
    arena: Arena,
    *,
    min_weight: float,
    seen: Tensor,
    wanting: Tensor,
    photos: Tensor,
    reached: Tensor,
    now: Tensor,
    count: Tensor | None = None,
    enabled: Tensor | None = None,
) -> None:
    """Add the samples of one step to the evidence about own nodes, slots 0 .. len(seen)-1; see the reference twin."""
    if enabled is not None and not bool(enabled):
        return
    n = slot.shape[0] if count is None else int(count)
    _note(
        slot[:n].numpy(), wanted[:n].numpy(), weight[:n].numpy(), position[:n].numpy(), photo.numpy(), ray[:n].numpy(),
        arena.level.numpy(), arena.top_level.numpy(), arena.treelet.numpy(), seen.shape[0], min_weight,
        seen.numpy(), wanting.numpy(), photos.numpy(), reached.numpy(), arena.occupancy_cells, int(now),
        count is not None,
    )  # fmt: skip
