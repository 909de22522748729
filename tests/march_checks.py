"""What the Triton march must do, against its torch twin: run by Triton's interpreter and on a GPU alike.

A subclass says where (`device`) and how large (`scale`).
"""

import importlib
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from arenas import chain_octree, full_octree, make_rays, node_corners, random_arena, random_octree, random_rays
from cuda_checks import MARCHED, moved
from torch import Tensor

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cuda, reference
from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples, Rays, Samples

EDGE = 50.0
SETTINGS = MarchSettings(near=2.0, step=1.5, gsd_root=EDGE / MARCHED.cells, lod_bias=-2.0)
PER_SAMPLE = ["ray", "t", "dt", "wanted", "slot", "beta", "position", "blend", "slot_above", "position_above"]


class MarchChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]
    differ: ClassVar[float]
    """Share of rays that may differ from the twin's by rounding."""

    def compare(self, rays: Rays, arena: Arena, settings: MarchSettings = SETTINGS, **options: Any) -> Samples:
        """The kernel's samples, after checking that they are the twin's."""
        here = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in options.items()}
        found = cuda.march(moved(rays, self.device), moved(arena, self.device), settings, **here)
        got = moved(found, torch.device("cpu"))
        want = reference.march(rays, arena, settings, **options)
        same_rays(got, want, self.differ)
        return got

    @pytest.mark.parametrize(
        ("cells", "depth", "bands", "fill", "lod_bias"),
        [(16, 0, (0,), 0.3, 0.0), (16, 5, (0, 2, 4), 0.3, -1.0), (64, 3, (0, 1, 2, 3), 0.05, -1.5)],
    )
    @pytest.mark.parametrize("adapt", [False, True])
    def test_samples_are_the_twins(
        self, rng: np.random.Generator, cells: int, depth: int, bands: tuple[int, ...], fill: float, lod_bias: float,
        adapt: bool,
    ) -> None:  # fmt: skip
        shape = FieldShape(cells=cells, table_size=64, features=2)
        settings = replace(SETTINGS, gsd_root=EDGE / cells, lod_bias=lod_bias)
        arena = random_arena(rng, random_octree(rng, depth), bands, shape=shape, fill=fill)
        rays = random_rays(rng, 33 * self.scale, edge=EDGE, footprint=0.05)
        self.compare(rays, arena, settings, adapt=adapt)

    def test_thinned_and_limited(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, full_octree(2), (0, 2), shape=MARCHED, fill=0.6, empty_nodes=0.0)
        rays = random_rays(rng, 20 * self.scale, edge=EDGE, footprint=0.06)
        thin = self.compare(rays, arena, keep=7, adapt=True)
        assert int(thin.ray_start.diff().max()) == 7
        start = reference.march(rays, arena, SETTINGS, limit=5).next_step
        start[::3] = -1
        self.compare(rays, arena, start=start, limit=4)

    @pytest.mark.parametrize("noted", [1, 6, 40])
    @pytest.mark.parametrize("keep", [None, 5])
    def test_rays_with_more_samples_than_are_noted(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, noted: int, keep: int | None
    ) -> None:
        monkeypatch.setattr(importlib.import_module("infnerf_tiles.kernels.cuda.march"), "_KNOWN", noted)
        arena = random_arena(rng, full_octree(2), (0, 2), shape=MARCHED, fill=0.6, empty_nodes=0.0)
        rays = random_rays(rng, 20 * self.scale, edge=EDGE, footprint=0.06)
        counts = self.compare(rays, arena, adapt=True).ray_start.diff()
        assert noted == 40 or int(counts.max()) > noted
        self.compare(rays, arena, keep=keep, adapt=True)

    def test_edge_cases(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 3), shape=MARCHED, fill=0.3)
        self.compare(random_rays(rng, 0), arena)
        self.compare(random_rays(rng, 1, edge=EDGE, footprint=0.08), arena)
        nothing = random_arena(rng, random_octree(rng, 3), shape=MARCHED, fill=0.0)
        assert self.compare(random_rays(rng, 9, edge=EDGE, footprint=0.08), nothing).count == 0
        past = make_rays(np.array([[2.0, 0.5, 0.5]]), np.array([[1.0, 0.1, 0.0]]), edge=EDGE, footprint=0.04)
        assert self.compare(past, arena).count == 0

    def test_faces_and_deepest_level(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 4, children=6.0), (0, 2), shape=MARCHED, fill=0.5, empty_nodes=0.1)
        grid = np.array([0.0, 1 / 64, 0.5, 1 - 2.0**-53])
        faces = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        axis = int(rng.integers(0, 3))
        origins = np.insert(faces, axis, rng.choice([-0.25, 0.0, 0.375, 1.0], len(faces)), axis=1)
        directions = np.zeros_like(origins)
        directions[:, axis] = np.where(origins[:, axis] > 0.5, -1.0, 1.0)
        self.compare(make_rays(origins, directions, edge=EDGE, footprint=0.08), arena)
        point = (rng.integers(2**16, 2**17, 3) + 0.5) / 2**18  # the middle of a node
        deep = random_arena(rng, chain_octree(18, point), (0, 15), shape=MARCHED, fill=1.0, empty_nodes=0.0)
        directions = rng.normal(size=(8, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        rays = make_rays(point - directions * 1e-5, directions, edge=EDGE, footprint=0.05)
        samples = self.compare(rays, deep, replace(SETTINGS, near=1e-5, lod_bias=0.0), limit=70)
        assert int(deep.level[samples.slot.long()].max()) == 18

    def test_positions_stay_in_their_nodes(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=MARCHED, fill=0.5)
        rays = random_rays(rng, 32 * self.scale, edge=EDGE, footprint=0.06)
        samples = moved(
            cuda.march(moved(rays, self.device), moved(arena, self.device), SETTINGS), torch.device("cpu")
        )
        corner, edge = (torch.from_numpy(a) for a in node_corners(arena))
        slot = samples.slot.long()
        inside = (samples.position.double() - corner[slot]) / edge[slot][:, None]
        assert ((inside >= 0) & (inside < 1)).all()


def same_rays(got: Samples, want: Samples, differ: float) -> None:
    """Column by column, ray by ray; `differ` is the share of rays that may be different."""
    num = len(want.next_step)
    same = (got.ray_start.diff() == want.ray_start.diff()) & (got.next_step == want.next_step)
    for q in torch.nonzero(same).flatten().tolist():
        mine = slice(int(got.ray_start[q]), int(got.ray_start[q + 1]))
        theirs = slice(int(want.ray_start[q]), int(want.ray_start[q + 1]))
        for name in PER_SAMPLE:
            a, b = getattr(got, name)[mine], getattr(want, name)[theirs]
            same[q] &= torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-6)
    assert int((~same).sum()) <= differ * num, f"{int((~same).sum())} of {num} rays differ"
    assert got.ray.dtype == torch.int32
    assert torch.equal(got.ray, torch.repeat_interleave(got.ray_start.diff()).int())


class PackedChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    def _scene(self, rng: np.random.Generator) -> tuple[Arena, Rays]:
        arena = random_arena(rng, full_octree(3), (0, 1, 2, 3), shape=MARCHED, fill=0.5, empty_nodes=0.0)
        return arena, random_rays(rng, 40 * self.scale, edge=EDGE, footprint=0.08)

    @pytest.mark.parametrize(("share", "above"), [(2.0, 1.0), (0.6, 0.3), (0.0, 0.0)])
    def test_buffers_hold_the_samples_that_fit(self, rng: np.random.Generator, share: float, above: float) -> None:
        arena, rays = self._scene(rng)
        used = 31 * self.scale
        whole = cuda.march(moved(rays, self.device), moved(arena, self.device), SETTINGS, keep=6, adapt=True)
        capacity = int(share * float(whole.ray_start[used])) + 1
        mixed = int((whole.slot_above >= 0).sum())
        num = rays.origins.shape[0]
        out = PackedSamples.allocate(
            rays=num, capacity=capacity, capacity_above=int(above * mixed) + 1, device=self.device
        )
        slow = PackedSamples.allocate(rays=num, capacity=capacity, capacity_above=int(above * mixed) + 1)
        # a second go over what the first one left
        for n in (num, used):
            num_rays = torch.tensor([n], dtype=torch.int32)
            cuda.march_packed(
                moved(rays, self.device), moved(arena, self.device), SETTINGS,
                num_rays=num_rays.to(self.device), out=out, keep=6, adapt=True,
            )  # fmt: skip
        reference.march_packed(rays, arena, SETTINGS, num_rays=num_rays, out=slow, keep=6, adapt=True)
        out = moved(out, torch.device("cpu"))
        for name in ("ray_start", "ray_count", "ray_kept", "next_step", "count", "demand", "above_count"):
            assert torch.equal(getattr(out, name), getattr(slow, name)), name
        m, a = int(out.count), int(out.above_count)
        assert m <= capacity
        assert bool(out.ray_kept[:used].all()) == (share >= 1.0)
        for name in ("ray", "t", "dt", "wanted", "slot", "beta", "position"):
            torch.testing.assert_close(getattr(out, name)[:m], getattr(slow, name)[:m], rtol=1e-6, atol=1e-6)
        # the second evaluations: each sample once, with what it needs; the others are drawn without
        chosen = out.above_sample[:a].long()
        assert len(chosen.unique()) == a
        wants = torch.zeros(m, dtype=torch.bool)
        wants[chosen] = True
        assert torch.equal(out.slot_above[:m] >= 0, wants)
        whole = moved(whole, torch.device("cpu"))
        wanted = whole.slot_above[:m] >= 0
        assert torch.equal(wants & wanted, wants)
        assert (out.blend[:m][wanted & ~wants] == 1).all()
        assert torch.equal(out.blend[:m][wants | ~wanted], whole.blend[:m][wants | ~wanted])
        assert torch.equal(out.above_slot[:a], out.slot_above[chosen])
        assert torch.equal(out.above_position[:a], out.position_above[chosen])
        if above >= 1.0:
            # everything fits, so the twins agree on all of it
            torch.testing.assert_close(out.blend[:m], slow.blend[:m], rtol=1e-6, atol=1e-6)
            assert torch.equal(out.slot_above[:m], slow.slot_above[:m])

    def test_rounds_carry_on_where_rays_did_not_fit(self, rng: np.random.Generator) -> None:
        """Rays marched in rounds through small buffers give the samples of one march."""
        arena, rays = self._scene(rng)
        there, on_device = moved(rays, self.device), moved(arena, self.device)
        whole = cuda.march(there, on_device, SETTINGS)
        num = rays.origins.shape[0]
        total = int(whole.ray_start[-1])
        # a third of what there is, however little these rays meet; a ray's share of a round (`limit`) has to fit
        capacity = max(20, total // 3)
        out = PackedSamples.allocate(rays=num, capacity=capacity, capacity_above=9, device=self.device)
        start = torch.zeros(num, dtype=torch.int64, device=self.device)
        num_rays = torch.tensor([num], dtype=torch.int32, device=self.device)
        found: list[list[float]] = [[] for _ in range(num)]
        rounds = 0
        while (start >= 0).any():
            cuda.march_packed(there, on_device, SETTINGS, num_rays=num_rays, out=out, start=start, limit=20)
            for q, t in zip(out.ray[: int(out.count)].tolist(), out.t[: int(out.count)].tolist(), strict=True):
                found[q].append(t)
            start = out.next_step.clone()
            rounds += 1
            assert rounds < 1000
        assert rounds > 1 or total <= capacity
        assert [t for ray in found for t in ray] == whole.t.tolist()
