"""Sums of weights by ray and treelet, against a twin in plain numpy."""

import importlib
from collections import defaultdict

import numpy as np
import pytest
import torch

from infnerf_tiles.geometry.node_id import encode_keys
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.training.ray_treelets import ray_treelets


def samples_at(ray_start: list[int], t: np.ndarray) -> Samples:
    """Samples of which only the place on their rays is known."""
    none = torch.zeros(0)
    return Samples(
        ray_start=torch.tensor(ray_start), ray=none, t=torch.from_numpy(t.astype(np.float32)), dt=none, wanted=none,
        slot=none, beta=none, position=none, blend=none, slot_above=none, position_above=none, next_step=none,
    )  # fmt: skip


@pytest.mark.parametrize(("top", "margin", "at_once"), [(0, 0.1, 512), (2, 0.0, 7), (2, 0.12, 300), (4, 0.3, 64)])
def test_sums_are_those_of_the_slow_twin(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, top: int, margin: float, at_once: int
) -> None:
    monkeypatch.setattr(importlib.import_module("infnerf_tiles.training.ray_treelets"), "_AT_ONCE", at_once)
    num, cells = 300, 1 << top
    counts = rng.integers(0, 40, num)
    starts = np.concatenate([[0], np.cumsum(counts)])
    t = np.concatenate([np.sort(rng.uniform(0, 1, n)) for n in counts])
    weights = rng.random(len(t)).astype(np.float32)
    origins = rng.random((num, 3))
    directions = rng.random((num, 3)) - origins
    every = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    kept = every[rng.random(len(every)) < 0.6] if top else every
    keys = np.sort(encode_keys(np.full(len(kept), top), kept))
    row_of = {int(key): k for k, key in enumerate(keys)}
    found = ray_treelets(
        samples_at(starts.tolist(), t), weights, origins, directions, top=top, root_keys=keys, margin=margin
    )
    shifts = [np.zeros(3)]
    if top and margin:
        shifts += [np.array([c & 1, c >> 1 & 1, c >> 2]) * 2.0 * margin - margin for c in range(8)]
    sums: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(len(shifts)))
    crossed = np.ones(num, np.int64)
    for q in range(num):
        before, runs = None, 0
        for m in range(starts[q], starts[q + 1]):
            unit = (origins[q] + np.float32(t[m]) * directions[q]) * cells
            for s, shift in enumerate(shifts):
                cell = np.floor(unit + shift).astype(np.int64)
                if s == 0:
                    runs += tuple(cell) != before
                    before = tuple(cell)
                if ((cell < 0) | (cell >= cells)).any():
                    continue
                row = row_of.get(int(encode_keys([top], cell[None])[0]))
                if row is not None:
                    sums[q, row][s] += weights[m]
        crossed[q] = max(runs, 1)
    expected = sorted(sums)
    assert list(zip(found.ray.tolist(), found.treelet.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found.weight, [sums[pair].max() for pair in expected], rtol=1e-6)
    np.testing.assert_allclose(found.own, [sums[pair][0] for pair in expected], rtol=1e-6)
    assert np.array_equal(found.crossed, crossed)


def test_no_rays() -> None:
    found = ray_treelets(
        samples_at([0], np.zeros(0)), np.zeros(0, np.float32), np.zeros((0, 3)), np.zeros((0, 3)), top=1,
        root_keys=encode_keys([1], np.zeros((1, 3), np.int64)), margin=0.1,
    )  # fmt: skip
    assert len(found.ray) == len(found.crossed) == 0
