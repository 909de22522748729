"""What a finished training leaves: pruned nodes with their rows, the folded base, and where growth wants to go on."""

from dataclasses import dataclass

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float16, Float32, Int64, UInt8
from infnerf_tiles.field.treelet import fold_corrections
from infnerf_tiles.geometry.node_id import child_keys, key_levels, parent_keys
from infnerf_tiles.training.refresh import cell_optical_depth, settle_levels
from infnerf_tiles.training.trainer import Trainer
from infnerf_tiles.volume.occupancy import pack_cells

RESIDUAL_FLOOR = 1e-3
"""A leaf whose residual never exceeds this changes nothing that float16 features or eight-bit colours would show."""
_FINAL_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class TrainedTreelet:
    """Rows of a trained treelet, ready to write. Nodes ascend by key."""

    keys: Int64
    tables: Float16
    """float16 [n, T * F]."""
    occupancy: UInt8
    """uint8 [n, bytes]."""
    lambda_max: Float32
    base: Float16
    """float16 [V, V, V, F]."""
    want_children: Int64
    """Keys one level below the deepest own level that the training's samples asked for."""


def finish(trainer: Trainer, threshold: float, needed: Int64) -> TrainedTreelet:
    """Fold the corrections, settle the occupancy, prune leaves that show nothing.

    Args:
        needed: keys that may not be pruned (their descendants exist in the octree), int64.

    NonFiniteError if the last step left what cannot be drawn.
    """
    state, evidence = trainer.state, trainer.evidence
    state.check_finite(trainer.step)
    trainer.shared.check_finite(trainer.step)
    rng = np.random.default_rng((*trainer.seed, 1 << 40))
    ema = state.ema[: state.num_own].cpu().numpy()
    candidates = np.flatnonzero(ema > 0.25 * threshold)
    depth = np.zeros(len(candidates), np.float32)
    for _ in range(_FINAL_POINTS):
        depth = np.maximum(depth, cell_optical_depth(state, trainer.shared.decoder, trainer.frame, candidates, rng))
    cells: Bool = np.zeros(ema.shape, np.bool_)
    cells.reshape(-1)[candidates] = np.maximum(depth, 0.5 * ema.reshape(-1)[candidates]) > threshold
    if (reached := trainer.reached_cells()) is not None:
        cells &= reached
    shown = cells.reshape(state.num_own, -1).any(axis=1)
    cells = settle_levels(state, trainer.shared.decoder, trainer.frame, cells, threshold)
    state.set_occupied(cells)
    slots = np.arange(state.num_own)
    keys, level = state.keys[slots], state.level[slots]
    lambda_max = np.minimum(evidence.seen[: state.num_own].cpu().numpy(), level.astype(np.float32))
    # a node seen at no finer level than its parent's own was never trained
    useless = (lambda_max <= level - 1) | ~shown
    low, high = torch.aminmax(state.tables[: state.num_own].view(state.num_own, -1), dim=1)
    size = torch.maximum(-low, high).cpu().numpy()
    useless |= size < RESIDUAL_FLOOR
    useless[level == state.top.level] = False
    keep = prune(keys, useless, needed)
    lambda_max[level == 0] = np.maximum(lambda_max[level == 0], 0.0)
    want = _wanted_children(trainer, keep)
    # what finer nodes add to counts in full there, so it has to where this node draws as well
    carries = np.isin(keys, np.concatenate([parent_keys(keys[keep & (level > 0)]), parent_keys(want), needed]))
    lambda_max = np.where(carries, level.astype(np.float32), np.maximum(lambda_max, np.float32(0.0)))
    order = np.flatnonzero(keep)[np.argsort(keys[keep], kind="stable")]
    shape = state.shape
    v = shape.base_cells + 1
    base = fold_corrections(state.dense[: shape.training_dense_rows], shape, shape.num_corrections)[: v**3]
    tables: Float16 = np.empty((len(order), shape.row_length), np.float16)
    for k, slot in enumerate(order.tolist()):
        tables[k] = state.tables[slot].cpu().numpy().reshape(-1)
    return TrainedTreelet(
        keys=keys[order],
        tables=tables,
        occupancy=pack_cells(cells[order]),
        lambda_max=lambda_max[order].astype(np.float32),
        base=base.cpu().numpy().reshape(v, v, v, shape.features).astype(np.float16),
        want_children=want,
    )


def _wanted_children(trainer: Trainer, keep: Bool) -> Int64:
    """Keys of children that the samples asked for below the deepest own level."""
    if not trainer.frame.can_go_below:
        return np.empty(0, np.int64)
    state = trainer.state
    slot, octant = trainer.evidence.octants(trainer.min_points)
    below = (state.level[slot] == trainer.frame.max_own_level) & keep[slot]
    want: Int64 = np.unique(child_keys(state.keys[slot[below]])[np.arange(int(below.sum())), octant[below]])
    return want


def prune(keys: Int64, useless: Bool, needed: Int64) -> Bool:
    """bool [n]: what stays when useless leaves are dropped from the bottom up."""
    keep: Bool = np.ones(len(keys), np.bool_)
    levels = key_levels(keys)
    held = set(needed.tolist())
    for level in range(int(levels.max(initial=0)), -1, -1):
        for k in np.flatnonzero(levels == level).tolist():
            key = int(keys[k])
            if useless[k] and key not in held:
                keep[k] = False
            elif key:
                held.add(int(parent_keys(np.array([key]))[0]))
    return keep
