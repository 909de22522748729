"""Dropping what lies behind opaque matter."""

import numpy as np
import pytest
import torch
from arenas import random_arena, random_octree, random_rays

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cpu
from infnerf_tiles.kernels.arena import MarchSettings, Samples
from infnerf_tiles.volume.visibility import keep_reached

SHAPE = FieldShape(cells=16, table_size=64, features=2)
SETTINGS = MarchSettings(near=0.3, step=1.5, gsd_root=50 / 16, lod_bias=-2.0)


@pytest.fixture
def samples(rng: np.random.Generator) -> Samples:
    arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=SHAPE, fill=0.6, empty_nodes=0.0)
    return cpu.march(random_rays(rng, 120), arena, SETTINGS)


def test_kept_samples_are_those_in_front_of_the_stop(rng: np.random.Generator, samples: Samples) -> None:
    sigma = torch.from_numpy(rng.exponential(0.3, samples.count)).float()
    kept, index = keep_reached(samples, sigma, 1e-2)
    expected = []
    for q in range(120):
        own = range(int(samples.ray_start[q]), int(samples.ray_start[q + 1]))
        depth = 0.0
        for m in own:
            if depth > -np.log(1e-2):
                break
            expected.append(m)
            depth += float(sigma[m]) * float(samples.dt[m])
    assert index.tolist() == expected
    assert 0 < len(expected) < samples.count
    assert torch.equal(kept.ray, samples.ray[index])
    assert torch.equal(kept.position, samples.position[index])
    assert torch.equal(kept.next_step, samples.next_step)
    counts = torch.bincount(kept.ray.long(), minlength=120)
    assert torch.equal(kept.ray_start.diff(), counts)


def test_dropping_them_changes_no_pixel(rng: np.random.Generator, samples: Samples) -> None:
    sigma = torch.from_numpy(rng.exponential(1.0, samples.count)).float()
    colour = torch.from_numpy(rng.random((samples.count, 3))).float()
    kept, index = keep_reached(samples, sigma, 1e-4)
    assert kept.count < samples.count
    whole = cpu.composite(samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-4)
    less = cpu.composite(kept.ray_start, sigma[index], colour[index], kept.t, kept.dt, stop=1e-4)
    for a, b in zip(whole[:2], less[:2], strict=True):
        # a sample at the very stop may go one way here and the other there
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0.0)


def test_clear_air_keeps_everything(samples: Samples) -> None:
    kept, index = keep_reached(samples, torch.zeros(samples.count), 1e-4)
    assert torch.equal(index, torch.arange(samples.count))
    assert torch.equal(kept.t, samples.t)
