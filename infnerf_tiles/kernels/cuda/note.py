"""What samples say about nodes, in Triton: how fine they were seen, where more is wanted, what rays reached."""

import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.kernels.cuda.launch import launch, programs_for

_BLOCK = 128
_PHOTO_BITS = 63


@triton.jit(do_not_specialize=["num", "slots"])
def _note_kernel(
    slot, wanted, weight, position, photo, ray, level, treelet, top_level, seen, wanting, photos, reached, now, count,
    enabled, num, slots, min_weight,
    LOG_CELLS: tl.constexpr, BITS: tl.constexpr, COUNTED: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = m < num
    if COUNTED:
        live = live & (m < tl.load(count))
    if GATED:
        live = live & (m < num * (tl.load(enabled) != 0).to(tl.int32))
    s = tl.load(slot + m, mask=live, other=0)
    live = live & (s >= 0) & (s < slots)
    w = tl.load(weight + m, mask=live, other=0.0)
    if COUNTED:
        live = live & (w > 0.0)
    s = tl.where(live, s, 0)
    own = tl.load(level + s, mask=live, other=0)
    tree = tl.load(treelet + s, mask=live, other=0)
    height = tl.maximum(own - tl.load(top_level + tree, mask=live, other=0), 0)
    scale = (1 << (height + LOG_CELLS)).to(tl.float32)
    low: tl.constexpr = (1 << LOG_CELLS) - 1
    cx = (tl.load(position + m * 3, mask=live, other=0.0) * scale).to(tl.int32) & low
    cy = (tl.load(position + m * 3 + 1, mask=live, other=0.0) * scale).to(tl.int32) & low
    cz = (tl.load(position + m * 3 + 2, mask=live, other=0.0) * scale).to(tl.int32) & low
    cell = (cz << (2 * LOG_CELLS)) + (cy << LOG_CELLS) + cx
    time = tl.load(now) + tl.zeros([BLOCK], dtype=tl.int32)
    tl.store(reached + (s.to(tl.int64) << (3 * LOG_CELLS)) + cell, time, mask=live)
    strong = live & (w >= min_weight)
    level_wanted = tl.load(wanted + m, mask=strong, other=0.0)
    # looked at first: few samples raise what is known, and all those of a node meet in one word
    known = tl.load(seen + s, mask=strong, other=0.0)
    higher = strong & (level_wanted > known)
    # bits of floats order as integers do, those of negative ones backwards
    bits = seen.to(tl.pointer_type(tl.int32), bitcast=True) + s
    tl.atomic_max(bits, level_wanted.to(tl.int32, bitcast=True), mask=higher & (level_wanted >= 0.0), sem="relaxed")
    bits = seen.to(tl.pointer_type(tl.uint32), bitcast=True) + s
    tl.atomic_min(bits, level_wanted.to(tl.uint32, bitcast=True), mask=higher & (level_wanted < 0.0), sem="relaxed")
    more = strong & (level_wanted >= own.to(tl.float32) + 0.5)
    place = s * 8 + (cx >> (LOG_CELLS - 1)) + 2 * (cy >> (LOG_CELLS - 1)) + 4 * (cz >> (LOG_CELLS - 1))
    tl.atomic_add(wanting + place, tl.full([BLOCK], 1, dtype=tl.int32), mask=more, sem="relaxed")
    q = tl.load(ray + m, mask=more, other=0)
    bit = tl.full([BLOCK], 1, dtype=tl.int64) << (tl.load(photo + q, mask=more, other=0) % BITS)
    fresh = more & ((tl.load(photos + place, mask=more, other=0) & bit) == 0)
    tl.atomic_or(photos + place, bit, mask=fresh, sem="relaxed")


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
    num = slot.shape[0]
    launch(
        _note_kernel, programs_for(num, _BLOCK),
        slot.contiguous(), wanted.contiguous(), weight.contiguous(), position.contiguous(), photo.contiguous(),
        ray.contiguous(), arena.level, arena.treelet, arena.top_level, seen, wanting, photos, reached, now,
        slot if count is None else count, slot if enabled is None else enabled, num, seen.shape[0], min_weight,
        LOG_CELLS=arena.occupancy_cells.bit_length() - 1, BITS=_PHOTO_BITS, COUNTED=count is not None,
        GATED=enabled is not None, BLOCK=_BLOCK,
    )  # fmt: skip
