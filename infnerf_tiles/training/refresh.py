"""Refresh the occupancy of own nodes from their density, at the weights 0 and 1 of their own residual."""

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float32, Int64
from infnerf_tiles.field.decoder import Decoder
from infnerf_tiles.kernels import for_device
from infnerf_tiles.training.state import Frame, TrainingState

_BLOCK = 1 << 17


def cell_optical_depth(
    state: TrainingState, decoder: Decoder, frame: Frame, cells: Int64, rng: np.random.Generator
) -> Float32:
    """Optical depth of one step at a random point of each cell, the larger of the residual's weights 0 and 1.

    Args:
        cells: int64 [n], flat numbers into (num_own, O, O, O).

    Returns:
        float32 [n].
    """
    o = state.shape.occupancy_cells
    out = np.empty(len(cells), np.float32)
    kernels = for_device(state.arena.device)
    for first in range(0, len(cells), _BLOCK):
        part = cells[first : first + _BLOCK]
        slot, rest = np.divmod(part, o**3)
        local = np.stack([rest % o, rest // o % o, rest // (o * o)], axis=1).astype(np.float32)
        local = (local + rng.random(local.shape, dtype=np.float32)) / np.float32(o)
        slots = torch.from_numpy(slot.astype(np.int32))
        position = state.local_position(slots, torch.from_numpy(local))
        features = torch.empty((len(part), state.shape.features))
        largest = torch.zeros(len(part))
        # at weight 0 a step is as long as the level above has it, whose picture this node then has to go on with
        for beta, steps in ((0.0, 2.0), (1.0, 1.0)):
            kernels.encode_into(position, slots, torch.full((len(part),), beta), state.arena, features)
            with torch.no_grad():
                sigma, _ = decoder.density(features)
            largest = torch.maximum(largest, steps * sigma)
        gsd = frame.march.gsd_root / np.exp2(state.level[slot]).astype(np.float32)
        out[first : first + _BLOCK] = largest.numpy() * gsd * np.float32(frame.march.step)
    return out


def refresh_occupancy(
    state: TrainingState,
    decoder: Decoder,
    frame: Frame,
    rng: np.random.Generator,
    *,
    threshold: float,
    decay: float,
    share: float = 0.25,
    reached: Bool | None = None,
) -> None:
    """Decay every cell, re-evaluate the occupied ones and a random share of the others, set the bits anew.

    reached: cells that may be occupied at all, bool [num_own, O, O, O]; None for all.
    """
    occupied = state.occupied()
    ask: Bool = occupied | (rng.random(occupied.shape, dtype=np.float32) < share)
    cells = np.flatnonzero(ask)
    depth = cell_optical_depth(state, decoder, frame, cells, rng)
    ema = state.ema[: state.num_own]
    ema *= np.float32(decay)
    flat = ema.reshape(-1)
    flat[cells] = np.maximum(flat[cells], depth)
    state.set_occupied(ema > threshold if reached is None else (ema > threshold) & reached)
