"""What samples say about nodes: the numba twin against the torch twin."""

import numpy as np
import torch
from arenas import random_arena, random_octree, random_points

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cpu, reference

SHAPE = FieldShape(cells=16, table_size=64, features=2)


def test_twins_agree(rng: np.random.Generator) -> None:
    arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=SHAPE)
    slots = arena.level.shape[0]
    own = slots * 2 // 3
    for samples in (0, 1, 3000):
        position, slot, _ = random_points(rng, arena, samples)
        ray = torch.from_numpy(rng.integers(0, 40, samples).astype(np.int32))
        photo = torch.from_numpy(rng.integers(0, 200, 40))
        wanted = torch.from_numpy(rng.uniform(-0.5, 6.0, samples).astype(np.float32))
        weight = torch.from_numpy((rng.uniform(-0.1, 0.4, samples).clip(0)).astype(np.float32))
        for used, enabled in ((None, None), (samples // 2, 1), (samples, 0)):
            found = []
            for module in (cpu, reference):
                seen, wanting = torch.full((own,), -1.0), torch.zeros((own, 8), dtype=torch.int32)
                photos, reached = torch.zeros((own, 8), dtype=torch.int64), torch.zeros((own, 4**3), dtype=torch.int32)
                module.note(
                    slot, wanted, weight, position, photo, ray, arena, min_weight=0.1, seen=seen, wanting=wanting,
                    photos=photos, reached=reached, now=torch.tensor([7], dtype=torch.int32),
                    count=None if used is None else torch.tensor([used], dtype=torch.int32),
                    enabled=None if enabled is None else torch.tensor([enabled], dtype=torch.uint8),
                )  # fmt: skip
                found.append((seen, wanting, photos, reached))
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)
            if samples > 1:
                assert bool(found[0][3].any()) == (enabled != 0)
