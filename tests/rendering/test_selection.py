"""Selection: nothing that a march needs is ever left out, and little else is taken."""

import math

import numpy as np
import pytest
import torch
from arenas import random_octree
from rendering.random_scenes import GSD_ROOT, MAX_LEVEL, ROOT, full_keys, make_scene
from zarr.storage import MemoryStore

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.geometry.node_id import NodeId, RootCube, encode_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.kernels import cpu
from infnerf_tiles.kernels.arena import MarchSettings, Rays
from infnerf_tiles.rendering.node_cache import NodeCache
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.selection import bundle_of, select_nodes

CAMERAS = {
    "pinhole": Camera("PINHOLE", 24, 18, (25.0, 24.0, 12.5, 9.0)),
    "barrel": Camera("OPENCV", 24, 18, (15.0, 15.0, 12.0, 9.0, -0.08, 0.01, 0.003, -0.002)),
    "fisheye": Camera("OPENCV_FISHEYE", 24, 24, (7.5, 7.5, 12.0, 12.0, 0.02, 0.0, 0.0, 0.0)),
}


def rays_of(directions: Float64, origin: Float64, footprint: float) -> Rays:
    num = len(directions)
    return Rays(
        origins=torch.from_numpy(np.tile(ROOT.to_unit(origin), (num, 1))),
        directions=torch.from_numpy(directions / ROOT.edge),
        footprint=torch.full((num,), footprint, dtype=torch.float64),
        offset=torch.full((num,), 0.5, dtype=torch.float64),
    )


@pytest.mark.parametrize("lens", CAMERAS)
def test_every_node_that_a_march_draws_with_is_selected(lens: str, rng: np.random.Generator) -> None:
    octree = random_octree(rng, MAX_LEVEL, children=5.0)
    camera = CAMERAS[lens]
    selected_all = True
    with Scene.of_store(make_scene(MemoryStore(), keys=octree.keys, seed=int(rng.integers(1 << 30)))) as scene:
        cache = NodeCache(scene.store, scene.index, scene.shape, 1 << 30)
        arena = cache.ensure(octree.keys)
        slot_keys = cache.keys_by_slot
        for _ in range(6):
            eye = rng.uniform(-60.0, 60.0, 3)
            target = rng.uniform(-30.0, 30.0, 3)
            axes = look_at(eye[None], target[None], rng.normal(size=3))[0, :, :3]
            y, x = np.mgrid[: camera.height, : camera.width]
            local = unproject(camera, np.stack([x.ravel(), y.ravel()], axis=1) + 0.5)
            # a whole picture, a tile of it, one pixel
            x0, y0 = rng.integers(0, camera.width - 5), rng.integers(0, camera.height - 5)
            tile = ((x >= x0) & (x < x0 + 5) & (y >= y0) & (y < y0 + 5)).ravel()
            for chosen in (np.ones_like(tile), tile, np.arange(len(tile)) == rng.integers(len(tile))):
                directions = local[chosen] @ axes.T
                footprint = 1.0 / camera.focal
                lattice = MarchSettings(near=0.2, step=1.0, gsd_root=GSD_ROOT, lod_bias=rng.uniform(-1.0, 3.0))
                samples = cpu.march(rays_of(directions, eye, footprint), arena, lattice)
                nearest, farthest = np.sort(rng.uniform(0.0, 100.0, 2)) if rng.random() < 0.5 else (0.0, math.inf)
                t = samples.t.double().numpy()
                within = (t > nearest * (1 + 1e-6)) & (t < farthest * (1 - 1e-6))
                slots = torch.cat([samples.slot[within], samples.slot_above[within]]).unique()
                needed = slot_keys[slots[slots >= 0].numpy()]
                bundle = bundle_of(eye, directions, footprint, axes)
                keys = select_nodes(octree, ROOT, bundle, lattice, nearest=nearest, farthest=farthest)
                missing = np.setdiff1d(needed, keys)
                assert not len(missing), [str(NodeId.from_key(int(k))) for k in missing]
                assert len(np.unique(keys)) == len(keys)
                assert np.array_equal(Octree.from_keys(keys).keys, np.sort(keys)), "an ancestor is left out"
                selected_all &= len(keys) == octree.num_nodes
        cache.close()
    assert not selected_all, "a selection that takes everything would pass"


def _keys_on(level: int, points: Float64) -> Int64:
    cells = np.unique(np.floor(ROOT.to_unit(points) * 2**level).astype(np.int64), axis=0)
    return encode_keys(level, cells)


def test_a_narrow_view_takes_little() -> None:
    octree = Octree.from_keys(full_keys(MAX_LEVEL))
    lattice = MarchSettings(near=0.2, step=1.0, gsd_root=GSD_ROOT, lod_bias=0.0)
    eye, forward = np.array([-31.0, 1.3, 2.7]), np.array([1.0, 0.0, 0.0])
    axes = look_at(eye[None], (eye + forward)[None], np.array([0.0, 0.0, 1.0]))[0, :, :3]
    # one ray whose footprint stays below the finest GSD all the way
    narrow = bundle_of(eye, forward[None], 1e-4, axes)
    keys = select_nodes(octree, ROOT, narrow, lattice)
    along = eye + np.linspace(0.0, 62.99, 4000)[:, None] * forward
    expected = np.concatenate([_keys_on(level, along) for level in range(MAX_LEVEL + 1)])
    assert np.array_equal(np.sort(keys), np.sort(expected))
    # one sample of it
    one = select_nodes(octree, ROOT, narrow, lattice, nearest=7.5, farthest=7.5)
    here = (eye + 7.5 * forward)[None]
    assert np.array_equal(one, np.concatenate([_keys_on(level, here) for level in range(MAX_LEVEL + 1)]))
    # coarse pixels want coarse nodes only: λ = log2(4 / (t / 2)) at most 2 beyond t = 2
    coarse = select_nodes(octree, ROOT, bundle_of(eye, forward[None], 0.5, axes), lattice, nearest=2.001)
    assert Octree.from_keys(coarse).depth == 2


def test_rays_off_the_axis_of_a_wide_lens_are_bounded_too() -> None:
    octree = Octree.from_keys(full_keys(MAX_LEVEL))
    lattice = MarchSettings(near=0.2, step=1.0, gsd_root=GSD_ROOT, lod_bias=0.0)
    axes = np.eye(3)
    sideways = np.array([[1.0, 0.0, 0.05], [1.0, 0.1, -0.2]])
    sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
    bundle = bundle_of(np.array([0.5, 0.5, 0.5]), sideways, 0.01, axes)
    assert len(bundle.normals) == 5
    assert len(select_nodes(octree, ROOT, bundle, lattice)) < octree.num_nodes / 8
    everywhere = bundle_of(np.zeros(3), np.concatenate([np.eye(3), -np.eye(3)]), 0.01, axes)
    assert len(everywhere.normals) == 0


def test_large_map_coordinates_do_not_blur_the_selection() -> None:
    octree = Octree.from_keys(full_keys(2))
    lattice = MarchSettings(near=0.2, step=1.0, gsd_root=GSD_ROOT, lod_bias=0.0)
    axes = look_at(np.zeros((1, 3)), np.array([[1.0, 0.0, 0.0]]), np.array([0.0, 0.0, 1.0]))[0, :, :3]
    shift = np.array([7.5e6, 5.8e6, 200.0])
    far = RootCube(tuple((np.array(ROOT.origin) + shift).tolist()), ROOT.edge)
    eye = np.array([-31.0, 1.3, 2.7])
    here = select_nodes(octree, ROOT, bundle_of(eye, axes[:, 2][None], 1e-3, axes), lattice)
    there = select_nodes(octree, far, bundle_of(eye + shift, axes[:, 2][None], 1e-3, axes), lattice)
    assert np.array_equal(here, there)
