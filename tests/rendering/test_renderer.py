"""The renderer: pictures that do not depend on budget, cutting or history, read only what they need, and are right."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from arenas import full_octree
from rendering.random_scenes import (
    CAMERA,
    GSD_ROOT,
    ROOT,
    full_keys,
    header,
    make_scene,
    near_keys,
    planned_scene,
    pose,
)
from torch import Tensor
from zarr.storage import MemoryStore

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import BudgetError, DamagedStoreError, StoreError
from infnerf_tiles.field import shading
from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import FieldFn
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.geometry.footprint import wanted_level
from infnerf_tiles.geometry.node_id import ancestor_keys
from infnerf_tiles.kernels import reference
from infnerf_tiles.kernels.arena import Rays, Samples
from infnerf_tiles.rendering import ray_state
from infnerf_tiles.rendering.accounts import row_costs, smallest_working_set
from infnerf_tiles.rendering.node_cache import Aborted, NodeCache
from infnerf_tiles.rendering.ray_state import RayState, march_and_composite
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.scene_store import SceneStore

POSE = pose((50.0, 35.0, 22.0))
LAYERS = ("rgb", "transmittance", "depth", "level")


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Half-transparent matter, finer towards the middle, in two bands."""
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-3.0))


def differing(a: Picture, b: Picture) -> list[str]:
    """Layers that are not bit-equal."""
    return [name for name in LAYERS if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)]


def renderer_of(scene: Scene, budget: int | None = None, **options: int) -> Renderer:
    # one thread: these pictures are too small to be worth handing around
    return Renderer(scene, budget, **{"threads": 1, **options})


def drawn(scene: Scene, camera: Camera = CAMERA, place: Float64 = POSE, **options: int) -> Picture:
    with renderer_of(scene, **options) as renderer:
        return renderer.render(camera, place)


def test_the_picture_shows_something_of_everything(scene: Scene) -> None:
    picture = drawn(scene)
    assert picture.rgb.shape == (CAMERA.height, CAMERA.width, 3)
    assert {getattr(picture, name).dtype for name in LAYERS} == {np.dtype(np.float32)}
    assert 0.05 < picture.transmittance.mean() < 0.95
    assert np.unique(np.floor(picture.level[np.isfinite(picture.level)])).size >= 2
    assert picture.num_samples > 1000
    assert np.isfinite(picture.rgb).all()


def test_any_budget_gives_the_same_bits(scene: Scene) -> None:
    whole = drawn(scene)
    with renderer_of(scene, 1 << 30) as renderer:
        smallest = renderer.cache.smallest_working_set
    small = Camera("SIMPLE_PINHOLE", 24, 18, (30.0, 12.0, 9.0))
    small_whole = drawn(scene, small)
    for share, camera, expected in ((1.0, small, small_whole), (1.7, small, small_whole), (3.0, CAMERA, whole)):
        with renderer_of(scene, int(share * smallest)) as renderer:
            picture = renderer.render(camera, POSE)
            assert differing(picture, expected) == []
            assert renderer.cache.counters.evictions > 0
            assert renderer.cache.num_bytes <= renderer.cache.peak_bytes <= share * smallest


@pytest.mark.parametrize("share", [1.0, 0.25, 0.05])
def test_the_budget_is_hard_and_the_picture_the_same(scene: Scene, share: float) -> None:
    costs = row_costs(scene.shape)
    whole = scene.octree.num_nodes * costs.node + scene.index.num_treelets * costs.base
    budget = max(int(share * whole), smallest_working_set(scene.index, scene.shape))
    with renderer_of(scene, budget, read_ahead=True) as renderer:
        small = Camera("SIMPLE_PINHOLE", 24, 18, (30.0, 12.0, 9.0))
        renderer.prefetch(small, pose((45.0, 35.0, 22.0)))
        assert differing(renderer.render(small, POSE), drawn(scene, small)) == []
        assert 0 < renderer.cache.peak_bytes <= budget


def test_hidden_nodes_are_not_read() -> None:
    """A wall in front: the picture is the same with and without looking first, and much less is read."""
    keys = full_keys(3)
    with Scene.of_store(make_scene(MemoryStore(), keys=keys, fill=1.0, density=8.0)) as scene:
        camera, place = Camera("SIMPLE_PINHOLE", 12, 9, (20.0, 6.0, 4.5)), pose((31.0, 1.0, 2.0), (-30.0, 1.0, 2.0))
        pictures, read = [], []
        for eager in (1 << 20, 1):
            with renderer_of(scene, eager_nodes=eager) as renderer:
                pictures.append(renderer.render(camera, place))
                read.append(renderer.cache.counters.bytes_read)
        assert pictures[0].transmittance.max() < 0.01
        assert differing(*pictures) == []
        assert read[1] < 0.5 * read[0]


def test_a_picture_nobody_wants_any_more_is_given_up(scene: Scene) -> None:
    asked: list[bool] = []

    def abort() -> bool:
        asked.append(True)
        return len(asked) > 3

    with renderer_of(scene, block=8) as renderer:
        with pytest.raises(Aborted):
            renderer.render(CAMERA, POSE, abort=abort)
        assert len(asked) == 4
        assert differing(renderer.render(CAMERA, POSE), drawn(scene)) == []


def test_cutting_the_work_otherwise_gives_the_same_bits(scene: Scene) -> None:
    whole = drawn(scene)
    assert differing(drawn(scene, block=11), whole) == []
    assert differing(drawn(scene, round_samples=997), whole) == []
    assert differing(drawn(scene, threads=2), whole) == []


def test_what_was_drawn_before_does_not_matter(scene: Scene) -> None:
    with renderer_of(scene) as renderer:
        first = renderer.render(CAMERA, POSE)
        renderer.render(CAMERA, pose((-20.0, 5.0, 10.0)))
        assert differing(renderer.render(CAMERA, POSE), first) == []


def test_reading_ahead_changes_nothing_but_the_waiting(scene: Scene) -> None:
    other = pose((-20.0, 45.0, 10.0))
    expected = [drawn(scene), drawn(scene, place=other)]
    smallest = renderer_of(scene).cache.smallest_working_set
    for budget in (1 << 30, 4 * smallest, smallest):
        with renderer_of(scene, budget, read_ahead=True) as renderer:
            renderer.prefetch(CAMERA, other)
            assert renderer.cache.num_bytes + renderer.cache.prefetched_bytes <= budget
            first = renderer.render(Camera("SIMPLE_PINHOLE", 4, 4, (50.0, 2.0, 2.0)), POSE)
            assert first.num_samples > 0
            if budget > 3 * smallest:
                assert differing(renderer.render(CAMERA, POSE), expected[0]) == []
                assert differing(renderer.render(CAMERA, other), expected[1]) == []
            assert (renderer.cache.prefetch_bytes > 0) == (budget > smallest)


def test_only_selected_nodes_are_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_node = SceneStore.read_node

    def recorded(store: SceneStore, slot: int) -> np.ndarray:
        read.append(slot)
        return read_node(store, slot)

    monkeypatch.setattr(SceneStore, "read_node", recorded)
    # the fine nodes are within 28 m of the middle: this looks past them
    aside = pose((50.0, -31.0, -31.0), (-50.0, -31.0, -31.0))
    narrow = Camera("SIMPLE_PINHOLE", 8, 8, (400.0, 4.0, 4.0))
    drawn(scene, narrow, aside)
    assert 1 <= len(read) < scene.octree.num_nodes / 4
    assert len(set(read)) == len(read)
    read.clear()
    # coarse pixels: only what is wanted coarse
    drawn(scene, Camera("SIMPLE_PINHOLE", 8, 8, (8.0, 4.0, 4.0)))
    levels = scene.octree.levels[np.isin(scene.index.slots, read)]
    wanted = wanted_level(GSD_ROOT, (math.dist((50.0, 35.0, 22.0), (32.0, 32.0, 22.0))) / 8.0)
    assert levels.max() <= max(0, math.ceil(wanted))


def test_a_budget_below_the_smallest_working_set_is_refused(scene: Scene) -> None:
    with renderer_of(scene) as renderer:
        smallest = renderer.cache.smallest_working_set
    with pytest.raises(BudgetError, match=rf"memory budget: expected at least .* \({smallest} bytes\)"):
        Renderer(scene, smallest - 1)


def test_a_damaged_node_is_drawn_with_its_parent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The picture is that of a scene in which the node and all below it were never trained."""
    keys = near_keys(3, (2.0, 2.0, 2.0), 1.5)
    victim = ancestor_keys(keys[-1:], 2)
    make_scene(tmp_path / "s", keys=keys, density=-3.0).close()
    with Scene.open(tmp_path / "s") as scene:
        good = drawn(scene)
        slot = int(scene.index.slots[np.searchsorted(scene.index.keys, victim[0])])
        path = tmp_path / "s" / scene.store.row_key("params", slot)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(bytes(data))
        with renderer_of(scene) as renderer:
            bad = renderer.render(CAMERA, POSE)
            assert differing(renderer.render(CAMERA, POSE), bad) == []
        told = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(told) == 1
        assert "is damaged" in told[0].getMessage()
    with Scene.of_store(make_scene(MemoryStore(), keys=keys, density=-3.0, planned=victim)) as without:
        expected = drawn(without)
    assert differing(bad, expected) == []
    assert set(differing(bad, good)) == set(LAYERS)
    assert np.nanmax(np.abs(bad.level - good.level)) > 0.05


@pytest.mark.parametrize(("fill", "nested"), [(1.0, False), (0.4, True)])
def test_levels_blend_without_a_jump(fill: float, nested: bool) -> None:
    """Halving the step of the wanted level halves the largest change of a pixel, across levels and across bands.

    That holds where a child's cells are those of its parent (a cell that is occupied at one level only comes and goes
    at once) and where the wanted level exists (beyond it steps double at once).
    """
    store = make_scene(
        MemoryStore(), keys=full_keys(3), fill=fill, nested=nested, density=-5.0, noise=0.3,
        settings={"rendering": {"stop_transmittance": 0.0}},
    )  # fmt: skip
    camera, place = Camera("SIMPLE_PINHOLE", 16, 12, (40.0, 8.0, 6.0)), pose((60.0, 40.0, 30.0))
    with Scene.of_store(store) as scene, renderer_of(scene) as renderer:
        changes = []
        for step in (0.2, 0.1, 0.05):
            biases = np.arange(-0.9, 0.51, step)
            pictures = [renderer.render(camera, place, lod_bias=bias) for bias in biases]
            changes.append(max(np.abs(a.rgb - b.rgb).max() for a, b in pairwise(pictures)))
        span = (np.nanmin(pictures[0].level), np.nanmax(pictures[-1].level))
    # the rays begin where level 3 is wanted and end where level 0 is
    assert span[0] < 1.2
    assert span[1] > 1.6
    assert changes[0] > 1e-3
    assert changes[1] == pytest.approx(changes[0] / 2, rel=0.2)
    assert changes[2] == pytest.approx(changes[1] / 2, rel=0.2)


def sphere(rays: Rays, centre: Tensor, radius: float) -> FieldFn:
    """A solid ball that is opaque within a hair, its colour the place on it."""

    def field(samples: Samples, basis: Tensor) -> tuple[Tensor, Tensor]:
        ray = samples.ray.long()
        unit = rays.origins[ray] + samples.t.double()[:, None] * rays.directions[ray]
        inside = torch.linalg.norm((unit - centre) * ROOT.edge, dim=1) < radius
        return torch.where(inside, 1e4, 0.0).float(), unit.float()

    return field


@pytest.mark.parametrize("cut", [None, (3, 40, 41, 90)])
def test_an_analytic_ball_has_its_true_depth(cut: tuple[int, ...] | None) -> None:
    """The same marching and compositing draw any field, in one go or cut in distance."""
    store = make_scene(MemoryStore(), keys=full_octree(1).keys, fill=1.0)
    eye, radius = np.array([28.0, 3.0, -5.0]), 11.0
    camera = Camera("SIMPLE_PINHOLE", 40, 30, (38.0, 20.0, 15.0))
    with Scene.of_store(store) as scene:
        cache = NodeCache(scene.store, scene.index, scene.shape, 1 << 30)
        arena = cache.ensure(scene.octree.keys)
        place = pose(tuple(eye.tolist()), (0.0, 0.0, 0.0))
        y, x = np.mgrid[: camera.height, : camera.width]
        directions = unproject(camera, np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) @ place[:, :3].T
        num = len(directions)
        rays = Rays(
            origins=torch.from_numpy(np.tile(ROOT.to_unit(eye), (num, 1))),
            directions=torch.from_numpy(directions / ROOT.edge),
            footprint=torch.full((num,), 1 / camera.focal, dtype=torch.float64),
            offset=torch.full((num,), 0.5, dtype=torch.float64),
        )
        lattice = replace(scene.lattice(), step=0.25)
        state = RayState.fresh(num)
        field = sphere(rays, torch.from_numpy(ROOT.to_unit(np.zeros(3))), radius)
        basis = direction_basis(torch.from_numpy(directions))
        for end in (*(cut or ()), None):
            march_and_composite(arena, field, rays, basis, state, lattice, stop=1e-3, end=end, adapt=False)
        cache.close()
    along = -directions @ eye
    squared = radius**2 - (eye @ eye - along**2)
    hits = squared > 1.0  # away from the rim
    depth = (state.depth / state.facts[:, 1]).numpy()
    truth = along - np.sqrt(np.maximum(squared, 0.0))
    step = 0.25 / camera.focal * truth
    assert hits.sum() > 100
    assert (np.abs(depth - truth)[hits] < step[hits]).all()
    assert (state.transmittance.numpy()[hits] < 1e-3).all()
    assert (state.transmittance.numpy()[squared < 0] == 1.0).all()
    point = ROOT.to_unit(eye + depth[:, None] * directions)
    assert np.allclose(state.colour.numpy()[hits], point[hits], atol=2e-3)


def test_rays_that_meet_nothing_show_the_background_and_no_depth(scene: Scene) -> None:
    away = pose((60.0, 0.0, 0.0), (100.0, 3.0, 0.0))
    picture = drawn(scene, place=away)
    assert (picture.transmittance == 1.0).all()
    assert np.isinf(picture.depth).all()
    assert np.isnan(picture.level).all()
    y, x = np.mgrid[: CAMERA.height, : CAMERA.width]
    directions = unproject(CAMERA, np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) @ away[:, :3].T
    behind = scene.background(direction_basis(torch.from_numpy(directions))).numpy()
    assert np.allclose(picture.rgb.reshape(-1, 3), behind, atol=1e-6)
    assert picture.num_samples == 0


def test_appearance_is_applied_to_the_whole_colour(scene: Scene) -> None:
    affine = np.array([[0.5, 0.1, 0.0, 0.2], [0.0, 0.7, 0.0, -0.1], [0.3, 0.0, 1.0, 0.0]])
    with renderer_of(scene) as renderer:
        plain, changed = renderer.render(CAMERA, POSE), renderer.render(CAMERA, POSE, affine=affine)
    assert np.allclose(changed.rgb, plain.rgb @ affine[:, :3].T + affine[:, 3], atol=1e-6)
    assert np.array_equal(changed.depth, plain.depth, equal_nan=True)


def test_a_larger_lod_bias_draws_finer_levels(scene: Scene) -> None:
    with renderer_of(scene) as renderer:
        coarse, fine = (renderer.render(CAMERA, POSE, lod_bias=bias) for bias in (-2.0, 0.0))
    assert np.nanmean(coarse.level) < np.nanmean(fine.level) - 0.3


def test_a_distorted_camera_can_be_drawn(scene: Scene) -> None:
    fisheye = Camera("OPENCV_FISHEYE", 40, 40, (13.0, 13.0, 20.0, 20.0, 0.01, 0.0, 0.0, 0.0))
    inside = pose((3.0, 2.0, 1.0), (10.0, 2.0, 1.0))
    assert differing(drawn(scene, fisheye, inside), drawn(scene, fisheye, inside, block=13)) == []


def test_progress_ends_at_one(scene: Scene) -> None:
    shares: list[float] = []
    with renderer_of(scene, block=20) as renderer:
        renderer.render(CAMERA, POSE, progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 6
    assert shares[-1] == 1.0


def test_a_scene_without_trained_nodes_cannot_be_drawn() -> None:
    with pytest.raises(StoreError, match="expected trained nodes, got none yet; run 'train' first"):
        Scene.of_store(planned_scene(MemoryStore()))


def test_parts_that_do_not_fit_are_told() -> None:
    store = make_scene(MemoryStore())
    store.write_small("background", {"coefficients": np.zeros((4, 3), np.float32)})
    with pytest.raises(DamagedStoreError, match=r"background: expected coefficients \(9, 3\), got \(4, 3\)"):
        Scene.of_store(store)
    store = make_scene(MemoryStore())
    store.write_small("decoder", {"density_in.weight": np.zeros((16, 4), np.float32)})
    with pytest.raises(DamagedStoreError, match="its decoder does not fit"):
        Scene.of_store(store)
    odd = SceneStore.create(MemoryStore(), replace(header(), base_cells=4))
    with pytest.raises(StoreError):
        Scene.of_store(odd)


def test_the_scene_knows_its_photos(scene: Scene) -> None:
    assert scene.names[1] == "photo_1.png"
    assert scene.is_test.tolist() == [False, True, False, True, False]
    assert scene.known.tolist() == [True, False, True, False, True]
    assert np.allclose(scene.mean_affine, scene.affine[[0, 2, 4]].mean(axis=0))
    assert not any(parameter.requires_grad for parameter in scene.decoder.parameters())
    biased = scene.lattice(0.5)
    assert biased.lod_bias == scene.lattice().lod_bias + 0.5
    assert biased.gsd_root == GSD_ROOT


def test_the_slow_twin_of_the_kernels_draws_the_same(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Camera("SIMPLE_PINHOLE", 8, 6, (10.0, 4.0, 3.0))
    fast = drawn(scene, tiny)
    for module in (ray_state, shading):
        monkeypatch.setattr(module, "for_device", lambda _: reference)
    slow = drawn(scene, tiny)
    assert slow.num_samples == fast.num_samples
    for name in LAYERS:
        assert np.allclose(getattr(slow, name), getattr(fast, name), atol=1e-4, equal_nan=True), name
