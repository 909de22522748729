"""Arenas whose nodes and occupied cells lie along a wavy ground, as those of real scenes do."""

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import decode_keys, encode_keys
from infnerf_tiles.kernels.arena import Arena, Rays
from infnerf_tiles.kernels.blocks import occupied_blocks
from infnerf_tiles.volume.occupancy import any_occupied

EDGE = 1000.0
"""Edge of the root cube, world units."""


def height(x: Float64, y: Float64) -> Float64:
    """The ground in the unit cube."""
    return np.asarray(0.3 + 0.05 * np.sin(9.0 * x) * np.cos(7.0 * y) + 0.01 * np.sin(70.0 * x + 50.0 * y))


def ground_keys(depth: int) -> Int64:
    """Every node that the ground passes through, down to `depth`."""
    keys = [np.zeros(1, np.int64)]
    for level in range(1, depth + 1):
        n = 1 << level
        fine = (np.arange(n * 8) + 0.5) / (n * 8)
        x, y = np.meshgrid(fine, fine, indexing="ij")
        cells = np.stack([x * n, y * n, height(x, y) * n], axis=-1).reshape(-1, 3).astype(np.int64)
        keys.append(np.unique(encode_keys(level, cells)))
    return np.concatenate(keys)


def ground_cells(keys: Int64, edge: int) -> Bool:
    """Occupied cells bool [S, O, O, O] (z, y, x): those within a cell and a half of the ground."""
    levels, xyz = decode_keys(keys)
    out = np.zeros((len(keys), edge, edge, edge), np.bool_)
    inside = (np.arange(edge) + 0.5) / edge
    for k, (level, corner) in enumerate(zip(levels.tolist(), xyz, strict=True)):
        size = 0.5**level
        z, y, x = np.meshgrid(*((corner[a] + inside) * size for a in (2, 1, 0)), indexing="ij")
        out[k] = np.abs(z - height(x, y)) < 1.5 * size / edge
    return out


def ground_arena(shape: FieldShape, depth: int, device: torch.device, *, grids: int = 1) -> Arena:
    """One treelet of the ground's nodes with random features, in float16 on a GPU."""
    keys = ground_keys(depth)
    links = link(keys, np.zeros(len(keys), np.int32), np.zeros(1, np.int64))
    bits = np.packbits(ground_cells(keys, shape.occupancy_cells).reshape(len(keys), -1), axis=1, bitorder="little")
    return arena_of(shape, links, bits, device, grids=grids)


def arena_of(shape: FieldShape, links: object, bits: object, device: torch.device, *, grids: int) -> Arena:
    """An arena with these links and occupancy, all nodes in one treelet."""
    occupancy = np.asarray(bits)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    rows = shape.base_rows if grids == 1 else shape.training_dense_rows
    slots = len(occupancy)
    columns = {
        name: torch.from_numpy(np.asarray(getattr(links, name))).to(device)
        for name in ("level", "parent", "children", "treelet", "top_level", "top_xyz", "above")
    }
    flags = any_occupied(occupancy, links.level, links.children)  # type: ignore[attr-defined]
    return Arena(
        cells=shape.cells,
        base_cells=shape.base_cells,
        occupancy_cells=shape.occupancy_cells,
        root=links.root,  # type: ignore[attr-defined]
        tables=(0.1 * torch.randn((slots, shape.table_size, shape.features), device=device)).to(dtype),
        dense=(0.1 * torch.randn((rows, shape.features), device=device)).to(dtype),
        dense_offset=torch.zeros(1, dtype=torch.int64, device=device),
        dense_grids=torch.full((1,), grids, dtype=torch.int32, device=device),
        lambda_max=torch.full((slots,), 1e9, device=device),
        occupancy=torch.from_numpy(occupancy).to(device),
        blocks=occupied_blocks(torch.from_numpy(occupancy).to(device), shape.occupancy_cells),
        any_occupied=torch.from_numpy(flags).to(device),
        **columns,
    )


def aerial_rays(count: int, footprint: float, device: torch.device, seed: int = 0) -> Rays:
    """Rays from above the ground, down and aslant, neighbours beside each other as in patches of a photo."""
    rng = np.random.default_rng(seed)
    patches = -(-count // 256)
    eyes = rng.uniform([0.1, 0.1, 0.6], [0.9, 0.9, 0.7], (patches, 3))
    towards = rng.uniform([0.2, 0.2, 0.3], [0.8, 0.8, 0.3], (patches, 3)) - eyes
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    across = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2) * footprint
    directions = np.repeat(towards, 256, axis=0)
    directions[:, :2] += np.tile(across, (patches, 1))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Rays(
        origins=torch.from_numpy(np.repeat(eyes, 256, axis=0)[:count]).to(device),
        directions=torch.from_numpy(directions[:count] / EDGE).to(device),
        footprint=torch.full((count,), footprint, dtype=torch.float64, device=device),
        offset=torch.from_numpy(rng.random(count)).to(device),
    )
