"""What samples say about nodes, in plain torch: how fine they were seen, where more is wanted, what rays reached."""

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena


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
    """Add the samples of one step to the evidence about own nodes, slots 0 .. S'-1.

    Args:
        slot int32, wanted float32, weight float32, position float32 [., 3], ray int32: columns [M] of the samples.
        photo: int64 [Q], photo of each ray.
        min_weight: samples that carry less of their ray speak for no content.
        seen: float32 [S'], largest wanted level of a sample with content; raised.
        wanting: int32 [S', 8], counts per octant samples with content that wanted half a level more than the node has.
        photos: int64 [S', 8], bit p % 63 set for the photos p of those.
        reached: int32 [S', O^3], set to `now` (int32 [1]) in the cells of all samples.
        count: int32 [1], rows in use of buffers of fixed capacity. Then samples of no weight at all, which lie behind
            opaque matter, reach nothing; without it the caller has dropped them.
        enabled: uint8 [1]; at 0 nothing is noted.
    """
    if enabled is not None and not bool(enabled):
        return
    use = slot < seen.shape[0]
    if count is not None:
        use &= torch.arange(slot.shape[0], device=slot.device) < count
        use &= weight > 0
    index = torch.nonzero(use).squeeze(1)
    s, w, at = slot[index].long(), weight[index], position[index]
    nodes = torch.exp2((arena.level[s] - arena.top_level[arena.treelet[s].long()]).to(at.dtype))[:, None]
    edge = arena.occupancy_cells
    cx, cy, cz = ((at * (nodes * edge)).long() % edge).unbind(1)
    reached[s, (cz * edge + cy) * edge + cx] = now
    strong = w >= min_weight
    seen.scatter_reduce_(0, s[strong], wanted[index][strong], "amax")
    more = strong & (wanted[index] >= arena.level[s] + 0.5)
    ox, oy, oz = ((at * (nodes * 2.0)).long() & 1).unbind(1)
    place = (s * 8 + ox + 2 * oy + 4 * oz)[more]
    wanting.view(-1).index_add_(0, place, torch.ones_like(place, dtype=wanting.dtype))
    group = (photo[ray[index].long()] % 63)[more]
    flat = photos.view(-1)
    for g in torch.unique(group).tolist():
        flat[place[group == g]] |= 1 << g
