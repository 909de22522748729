"""Refresh the occupancy of own nodes from their density, at the weights 0 and 1 of their own residual."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import Bool, Float32, Int32, Int64
from infnerf_tiles.field.decoder import Decoder
from infnerf_tiles.field.decoder_batch import density_of
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels import for_device
from infnerf_tiles.training.objective import REACHED_SHIFT
from infnerf_tiles.training.schedule import REACHED_PASSES
from infnerf_tiles.training.state import Frame, TrainingState
from infnerf_tiles.training.workload import Workload
from infnerf_tiles.volume.cells import dilate, pack_bits, unpack_bits
from infnerf_tiles.volume.occupancy import cover_finer, octant, refined, unpack_cells

DensityFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(position float32 [M, 3], slot int32 [M], beta float32 [M]) -> density float32 [M]; all on the state's device."""

_BLOCK = 1 << 17
_GPU_BLOCK = 1 << 20
SHARE = 0.25
"""Share of the empty cells that a refresh looks at."""
DECAY = 0.6
"""What is left of a cell's optical depth from one refresh to the next."""


def optical_depth(
    state: TrainingState,
    decoder: Decoder,
    frame: Frame,
    cells: Tensor,
    inside: Tensor,
    density: DensityFn | None = None,
) -> Tensor:
    """Optical depth of one step at a point of each cell, the larger of the residual's weights 0 and 1: float32 [n].

    Args:
        cells: int64 [n], flat numbers into (num_own, O, O, O). inside: float32 [n, 3] in [0, 1), place in the cell.
        density: asked in place of the state's features and the decoder.
    """
    o = state.shape.occupancy_cells
    slot = cells // o**3
    rest = cells - slot * o**3
    local = torch.stack([rest % o, rest // o % o, rest // (o * o)], dim=1).to(torch.float32)
    slots = slot.to(torch.int32)
    position = state.local_position(slots, (local + inside) / float(o))
    features = torch.empty((cells.shape[0], state.shape.features), device=state.device)
    largest = torch.zeros(cells.shape[0], device=state.device)
    kernels = for_device(state.device)
    # at weight 0 a step is as long as the level above has it, whose picture this node then has to go on with
    for beta, steps in ((0.0, 2.0), (1.0, 1.0)):
        weight = torch.full((cells.shape[0],), beta, device=state.device)
        if density is not None:
            sigma = density(position, slots, weight)
        else:
            kernels.encode_into(position, slots, weight, state.arena, features)
            sigma = density_of(decoder, features, torch.float32)
        largest = torch.maximum(largest, steps * sigma)
    gsd = frame.march.gsd_root * 2.0**-state.top.level * state.edge[slot]
    return largest * gsd * float(np.float32(frame.march.step))


def cell_optical_depth(
    state: TrainingState,
    decoder: Decoder,
    frame: Frame,
    cells: Int64,
    rng: np.random.Generator,
    density: DensityFn | None = None,
) -> Float32:
    """Optical depth of one step at a random point of each cell, the larger of the residual's weights 0 and 1.

    Args:
        cells: int64 [n], flat numbers into (num_own, O, O, O).
        density: asked in place of the state's features and the decoder.

    Returns:
        float32 [n].
    """
    out = np.empty(len(cells), np.float32)
    on_cpu = state.device.type == "cpu"
    block = _BLOCK if on_cpu else _GPU_BLOCK
    generator = torch.Generator(state.device)
    for first in range(0, len(cells), block):
        part = cells[first : first + block]
        if on_cpu:
            inside = torch.from_numpy(rng.random((len(part), 3), dtype=np.float32))
        else:
            generator.manual_seed(int(rng.integers(1 << 62)))
            inside = torch.rand((len(part), 3), generator=generator, device=state.device)
        depth = optical_depth(state, decoder, frame, torch.from_numpy(part).to(state.device), inside, density)
        out[first : first + block] = depth.cpu().numpy()
    return out


def reached_cells(work: Workload) -> Tensor | None:
    """Own cells that rays reached lately, or that lie beside such a one, bool [num_own, O^3].

    Those on the outer faces of the treelet count too: what lies beyond was reached in another training or not at all.
    None while coarse rays pass cells by.
    """
    now, state, evidence = work.counters, work.state, work.evidence
    since = now.rays_done - int(REACHED_PASSES * work.pixels.num_pixels)
    if since <= (0 if work.warm else now.coarse_until):
        return None
    lately = evidence.reached[: state.num_own] >= since >> REACHED_SHIFT
    return dilate(lately, evidence.edge, state.neighbours)


def refresh_occupancy(
    state: TrainingState,
    decoder: Decoder,
    frame: Frame,
    rng: np.random.Generator,
    *,
    threshold: float,
    decay: float,
    share: float = SHARE,
    reached: Tensor | None = None,
    density: DensityFn | None = None,
) -> None:
    """Decay every cell, re-evaluate the occupied ones and a random share of the others, set the bits anew.

    reached: cells that may be occupied at all, bool [num_own, O^3]; None for all. For states on the processor.
    density: as in `cell_optical_depth`.
    """
    occupied = state.occupied()
    ask: Bool = occupied | (rng.random(occupied.shape, dtype=np.float32) < share)
    cells = np.flatnonzero(ask)
    depth = cell_optical_depth(state, decoder, frame, cells, rng, density)
    ema = state.ema[: state.num_own].numpy()
    ema *= np.float32(decay)
    flat = ema.reshape(-1)
    flat[cells] = np.maximum(flat[cells], depth)
    full: Bool = ema > threshold
    state.set_occupied(full if reached is None else full & reached.numpy().reshape(full.shape))


def refresh_on_device(work: Workload, key: int, enabled: Tensor, reached: Tensor | None) -> None:
    """`refresh_occupancy` on the device, which is asked once: how many cells there are to look at.

    Args:
        key: what random numbers are made from. enabled: bool, on the device; if false nothing changes.
        reached: as in `refresh_occupancy`.
    """
    state, device = work.state, work.state.device
    generator = torch.Generator(device).manual_seed(key)
    own = state.num_own
    ema, bits = state.ema[:own].view(own, -1), state.occupancy[:own]
    chance = torch.rand(ema.shape, generator=generator, device=device)
    ask = torch.nonzero((unpack_bits(bits) | (chance < SHARE)).view(-1)).squeeze(1)
    updated = (ema * DECAY).view(-1)
    for cells in torch.split(ask, _GPU_BLOCK):
        inside = torch.rand((cells.shape[0], 3), generator=generator, device=device)
        depth = optical_depth(state, work.shared.decoder, work.frame, cells, inside)
        updated[cells] = torch.maximum(updated[cells], depth)
    ema.copy_(torch.where(enabled, updated.view(ema.shape), ema))
    occupied = ema > work.settings.occupancy_threshold
    if reached is not None:
        occupied &= reached
    bits.copy_(torch.where(enabled, pack_bits(occupied), bits))
    state.refresh_emptiness()


_PROBES = np.stack(np.meshgrid(*[np.array([0.002, 0.5, 0.998], np.float32)] * 3), axis=-1).reshape(27, 3)
"""Where a cell is probed, in cell edges: about where the level above has its vertices, since density between them is
largest at one; just inside, so that the cell's own node answers."""


def settle_levels(state: TrainingState, decoder: Decoder, frame: Frame, cells: Bool, threshold: float) -> Bool:
    """Make the cells of own nodes agree where one level hands over to the next, bool [num_own, O, O, O].

    A picture is continuous in the wanted level only if what a node draws at weight 0 is what its parent draws. Cells
    were found by random points and by rays that passed there, level by level, so each misses what the other has. A
    parent therefore takes every cell that a child has, and a child every cell of its parent which the parent's density
    makes more than `threshold` deep to cross, on the average of its probes.
    """
    cells = cells.copy()
    n, o = state.num_own, state.shape.occupancy_cells
    level, children = state.level, state.arena.children.cpu().numpy()
    cover_finer(cells, level[:n], children[:n])
    above = int(state.arena.above[0])
    for lev in range(state.top.level, int(level[:n].max()) + 1):
        slots = np.flatnonzero(level[:n] == lev)
        if lev > state.top.level:
            coarser = np.zeros((len(slots), o, o, o), np.bool_)
            parents = state.arena.parent.cpu().numpy()[slots]
            which = (children[parents] == slots[:, None]).argmax(axis=1)
            for c in range(8):
                z, y, x = octant(c, o)
                coarser[which == c] = refined(cells[parents[which == c]][:, z, y, x])
        elif above >= 0:
            z, y, x = octant(state.top.child_index, o)
            coarser = refined(unpack_cells(state.occupancy[above : above + 1].cpu().numpy(), o)[:, z, y, x])
        else:
            continue
        ask: Int64 = np.flatnonzero(coarser & ~cells[slots])
        row, rest = np.divmod(ask, o**3)
        found = np.zeros(len(ask), np.bool_)
        block = (_BLOCK if state.device.type == "cpu" else 4 * _GPU_BLOCK) // len(_PROBES)
        for first in range(0, len(ask), block):
            part = slice(first, first + block)
            sigma = _density_above(state, decoder, slots[row[part]].astype(np.int32), rest[part], above)
            crossing = frame.march.gsd_root / 2.0**lev * state.shape.cells / o
            found[part] = sigma.mean(axis=1) * crossing > threshold
        cells[slots[row[found]], rest[found] // (o * o), rest[found] // o % o, rest[found] % o] = True
    return cells


def _density_above(state: TrainingState, decoder: Decoder, slot: Int32, cell: Int64, above: int) -> Float32:
    """Density float32 [n, 27] at the probes of cells of own nodes, as the level above draws it."""
    o = state.shape.occupancy_cells
    device = state.arena.device
    at = torch.from_numpy(cell).to(device)
    corner = torch.stack([at % o, at // o % o, at // (o * o)], dim=1).float()
    local = ((corner[:, None] + torch.from_numpy(_PROBES).to(device)) / float(o)).reshape(-1, 3)
    slots = torch.from_numpy(slot).to(device).repeat_interleave(len(_PROBES))
    position = state.local_position(slots, local)
    beta = torch.zeros(len(slots), device=device)
    if above >= 0 and len(slot) and state.level[slot[0]] == state.top.level:
        # the treelet above answers, in the coordinates of its own root cube
        row = int(state.arena.treelet[above])
        holder = NodeId.from_key(int(state.top_keys[row]))
        height = state.top.level - holder.level
        low = np.array([state.top.x, state.top.y, state.top.z]) - (np.array([holder.x, holder.y, holder.z]) << height)
        position = ((position.double() + torch.from_numpy(low).to(device)) / 2.0**height).float().contiguous()
        slots, beta = torch.full_like(slots, above), torch.ones_like(beta)
    features = torch.empty((len(slots), state.shape.features), device=device)
    for_device(device).encode_into(position, slots, beta, state.arena, features)
    sigma = density_of(decoder, features, torch.float32)
    density: Float32 = sigma.cpu().numpy().reshape(-1, len(_PROBES))
    return density
