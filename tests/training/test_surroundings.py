"""What a treelet finds around it, what it starts from, and which pixels it gets."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from infnerf_tiles.pipelines.train import train
from training.small_scenes import TINY, build_scene, open_context, write_city

from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.node_id import NodeId, parent_keys
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.settings import load_settings
from infnerf_tiles.store.index import NodeState, SceneIndex
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import assignment
from infnerf_tiles.training.assignment import BandCut, _dilated, assign_patches
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixels import PATCH, Patches, all_patches, patch_points
from infnerf_tiles.training.state import TrainingState
from infnerf_tiles.training.surroundings import (
    read_surroundings,
    start_base,
    start_occupancy,
    warm_start,
)

SETTINGS = load_settings(None, [*TINY, "octree.min_points=20", "training.passes=1.5", "training.lr=2e-2"])
ROOT = NodeId(0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    set_threads(1)
    yield
    set_threads(None)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A scene whose first band is trained."""
    folder = tmp_path_factory.mktemp("surroundings")
    data = write_city(folder / "city")
    scene = build_scene(data, folder / "scene.zarr", SETTINGS)
    calls = iter([False, False])
    train(scene, threads=1, stop=lambda: next(calls, True))
    with SceneStore.open(scene) as store:
        yield open_context(store, data, SETTINGS)


@pytest.fixture(scope="module")
def index(context: Context) -> SceneIndex:
    return context.store.read_index()


@pytest.fixture(scope="module")
def arena(context: Context, index: SceneIndex) -> TrainingState:
    """The trained band, resident."""
    return TrainingState(context.shape, ROOT, np.empty(0, np.int64), 0, read_surroundings(context, index, ROOT, 1))


def second_band(index: SceneIndex) -> list[int]:
    return np.flatnonzero(index.bands == 1).tolist()


def test_surroundings_are_the_trained_nodes_of_the_bands_above(context: Context, index: SceneIndex) -> None:
    trained = index.keys[index.states == NodeState.TRAINED]
    assert len(trained) >= 1
    assert second_band(index)
    around = read_surroundings(context, index, ROOT, 1)
    assert np.array_equal(around.keys, trained)
    assert around.top_keys.tolist() == [0]
    for k, row in enumerate(np.searchsorted(index.keys, around.keys).tolist()):
        assert np.array_equal(around.tables[k], context.store.read_node(int(index.slots[row])))
        assert np.array_equal(around.occupancy[k], context.store.read_occupancy(int(index.slots[row])))
    assert len(read_surroundings(context, index, ROOT, 0).keys) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_surroundings_keep_to_their_budget_and_hang_together(
    context: Context, index: SceneIndex, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a deeper scene, of which only the index is real."""
    level3 = np.array([NodeId(3, x, y, z).key for x in range(0, 8, 2) for y in range(8) for z in range(2)])
    octree = Octree.from_keys(level3)
    n = octree.num_nodes
    deep = SceneIndex(
        keys=octree.keys, slots=np.arange(n, dtype=np.int32), treelets=np.zeros(n, np.int32),
        states=np.ones(n, np.uint8), lambda_max=np.ones(n, np.float32), root_keys=np.zeros(1, np.int64),
        bands=np.zeros(1, np.int32), base_slots=np.zeros(1, np.int32), treelet_states=np.ones(1, np.uint8),
    )  # fmt: skip
    base = context.store.read_base(int(index.base_slots[index.root_keys == 0][0]))
    row = context.store.read_node(int(index.slots[0])), context.store.read_occupancy(int(index.slots[0]))
    monkeypatch.setattr(context.store, "read_base", lambda _: base)
    monkeypatch.setattr("infnerf_tiles.training.surroundings._read_node", lambda *_: row)
    top = NodeId(4, 5, 7, 1)  # below L3/2-3-0
    around = read_surroundings(context, deep, top, 1, count * context.shape.node_bytes + 5)
    assert 1 <= len(around.keys) <= max(1, count)
    assert np.isin(parent_keys(around.keys[1:]), around.keys).all()
    chain = [top.ancestor(k).key for k in range(4)]
    assert np.isin(chain[: max(1, count)], around.keys).all()


def test_a_new_treelet_starts_as_the_field_above(context: Context, index: SceneIndex, rng: np.random.Generator) -> None:
    for row in second_band(index)[:3]:
        top = NodeId.from_key(int(index.root_keys[row]))
        keys = index.keys[index.treelets == row]
        around = read_surroundings(context, index, top, 1)
        state = TrainingState(context.shape, top, keys, len(keys) + 4, around)
        # as if the seed stage had left no base for it
        start_base(context, replace(index, base_slots=np.full_like(index.base_slots, -1)), row, state)
        inside = torch.from_numpy(rng.random((500, 3), np.float32))
        slots = torch.zeros(500, dtype=torch.int32)
        own, above = torch.empty((500, context.shape.features)), torch.empty((500, context.shape.features))
        encode_into = for_device(state.arena.device).encode_into
        encode_into(inside.contiguous(), slots, torch.ones(500), state.arena, own)
        # the same places in the cube of the treelet above, which is the octree's
        place = (inside.double() + torch.tensor([top.x, top.y, top.z])) / 2.0**top.level
        holder = torch.full((500,), int(state.arena.above[0]), dtype=torch.int32)
        encode_into(place.float(), holder, torch.ones(500), state.arena, above)
        assert above.abs().max() > 0.01
        assert torch.allclose(own, above, atol=1e-5)


def test_a_base_of_the_seed_stage_is_taken_as_it_is(context: Context, index: SceneIndex) -> None:
    row = next(r for r in second_band(index) if index.base_slots[r] >= 0)
    top = NodeId.from_key(int(index.root_keys[row]))
    keys = index.keys[index.treelets == row]
    state = TrainingState(context.shape, top, keys, len(keys) + 4, read_surroundings(context, index, top, 1))
    start_base(context, index, row, state)
    stored = context.store.read_base(int(index.base_slots[row])).reshape(-1, context.shape.features)
    assert np.array_equal(state.dense[: len(stored)].numpy(), stored.astype(np.float32))


def test_warm_rows_are_taken_and_the_others_start_empty(context: Context, index: SceneIndex) -> None:
    found = 0
    for row in second_band(index):
        top = NodeId.from_key(int(index.root_keys[row]))
        keys = index.keys[index.treelets == row]
        state = TrainingState(context.shape, top, keys, len(keys) + 4, read_surroundings(context, index, top, 1))
        filled = warm_start(context, index, state)
        slots = index.slots[np.searchsorted(index.keys, keys)]
        assert np.array_equal(filled, slots >= 0)
        found += int(filled.sum())
        for k in np.flatnonzero(~filled).tolist():
            assert not state.tables[k].any()
        for k in np.flatnonzero(filled).tolist():
            assert np.array_equal(state.tables[k].numpy().ravel(), context.store.read_node(int(slots[k])))
        cells = start_occupancy(context, state, filled)
        assert cells.shape == (len(keys), *(context.shape.occupancy_cells,) * 3)
        unit = context.store.header.root.to_unit(context.photos.points.xyz)  # type: ignore[union-attr]
        enough = context.photos.points.track_lengths >= 3  # type: ignore[union-attr]
        o = context.shape.occupancy_cells
        for k, key in enumerate(keys.tolist()):
            node = NodeId.from_key(key)
            local = unit[enough] * 2.0**node.level - [node.x, node.y, node.z]
            local = local[((local >= 0) & (local < 1)).all(axis=1)]
            at = (local * o).astype(np.int64)
            assert cells[k][at[:, 2], at[:, 1], at[:, 0]].all()
    assert found > 0


# --- patches --------------------------------------------------------------------------------------------------------


def test_dilation_takes_the_neighbours_of_the_same_picture() -> None:
    place = np.array([(f, p, c, r) for f in range(2) for p in range(2) for r in range(4) for c in range(5)], np.int32)
    patches = Patches(photo=place[:, 0], pyramid=place[:, 1], column=place[:, 2], row=place[:, 3])
    for chosen in ([0], [4], [19], [7, 33], [20, 79], []):
        expected = {
            k for k in range(len(place)) for c in chosen
            if (place[k, :2] == place[c, :2]).all() and np.abs(place[k, 2:] - place[c, 2:]).max() <= 1
        }  # fmt: skip
        assert set(_dilated(patches, np.array(chosen, np.int64)).tolist()) == expected


def cut_of(context: Context, index: SceneIndex) -> BandCut:
    levels = context.store.header.band_levels
    keys = np.sort(index.root_keys[index.bands == 1])
    return BandCut(top=levels[1], bottom=context.store.header.max_level, root_keys=keys)


def test_patches_go_where_a_slow_loop_sends_them(
    context: Context, index: SceneIndex, arena: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "CROSSING_SHARE", 0.0)
    monkeypatch.setattr(assignment, "OVERLAP_COPIES", 1e9)
    patches = all_patches(context.photos.cameras, context.training_photos)
    shared, cut, octree = context.read_shared(), cut_of(context, index), Octree.from_keys(index.keys)
    found = assign_patches(context, arena.arena, shared, patches, cut, octree)
    assert sorted(found) == cut.root_keys.tolist()
    cameras, root = context.photos.cameras, context.store.header.root
    expected: dict[int, set[int]] = {int(k): set() for k in cut.root_keys}
    points = patch_points(patches, assignment.RAYS_PER_EDGE)
    margin = 4.0 / context.shape.cells  # two voxels of the level above, in cubes of the treelets' roots
    for k in range(patches.count):
        origins, directions = cameras.rays(
            np.full(len(points[k]), patches.photo[k]), np.minimum(points[k], np.array([63.5, 47.5]))
        )
        n = len(origins)
        width = np.full(n, 2.0 ** patches.pyramid[k] / cameras.focals[patches.photo[k]])
        rays = Rays(
            origins=torch.from_numpy(root.to_unit(origins)), directions=torch.from_numpy(directions / root.edge),
            footprint=torch.from_numpy(width), offset=torch.full((n,), 0.5, dtype=torch.float64),
        )  # fmt: skip
        samples = for_device(arena.arena.device).march(rays, arena.arena, context.march(2.0), keep=256, adapt=True)
        sigma, _ = shade(arena.arena, shared.decoder, samples, direction_basis(torch.from_numpy(directions)))
        for q in range(n):
            through, weights, deep = 1.0, [], 0.0
            mine = range(int(samples.ray_start[q]), int(samples.ray_start[q + 1]))
            for m in mine:
                alpha = 1.0 - np.exp(-float(sigma[m]) * float(samples.dt[m]))
                weights.append(through * alpha if through > 1e-3 else 0.0)
                deep += weights[-1] * float(samples.t[m])
                through *= 1.0 - alpha if through > 1e-3 else 1.0
            opacity = sum(weights)
            distance = deep / max(opacity, 1e-6)
            wanted = np.log2(context.gsd_root / (max(distance, 1e-9) * width[q]))
            if wanted <= cut.top - 1.25:  # too coarse for the band; the photos' one level is their coarsest
                continue
            for key in expected:
                node = NodeId.from_key(key)
                held, meets = 0.0, False
                # a sample near a face counts on both sides: the largest sum over the eight ways to shift all samples
                for c in range(8):
                    shift = margin * np.array([2 * (c & 1) - 1, (c & 2) - 1, (c >> 1 & 2) - 1])
                    total = 0.0
                    for m, weight in zip(mine, weights, strict=True):
                        unit = rays.origins[q].numpy() + float(samples.t[m]) * rays.directions[q].numpy()
                        if (np.floor(unit * 2**cut.top + shift) == [node.x, node.y, node.z]).all():
                            total += weight
                            meets = True
                    held = max(held, total)
                if meets and (held > assignment.MIN_SHARE or opacity <= 0.5):
                    expected[key].add(k)
    differing = 0
    for key, chosen in expected.items():
        grown = set(_dilated(patches, np.array(sorted(chosen), np.int64)).tolist())
        differing += len(grown ^ set(found[key].tolist()))
    total = sum(len(c) for c in found.values())
    assert total > 0
    # the two round differently where a weight is at its limit
    assert differing <= 0.03 * total
    assert total <= patches.count * len(cut.root_keys)


def test_what_a_treelet_shows_is_among_its_patches(
    context: Context, index: SceneIndex, arena: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every patch that sees three of a treelet's sparse points at a level of the band may belong to it."""
    monkeypatch.setattr(assignment, "OVERLAP_COPIES", 1e9)
    patches = all_patches(context.photos.cameras, context.training_photos)
    cut, points = cut_of(context, index), context.photos.points
    assert points is not None
    found = assign_patches(context, arena.arena, context.read_shared(), patches, cut, Octree.from_keys(index.keys))
    unit = context.store.header.root.to_unit(points.xyz)
    missed = seen = 0
    owner = np.repeat(np.arange(points.num_points), points.track_lengths)
    for key, chosen in found.items():
        node = NodeId.from_key(key)
        inside = (np.floor(unit * 2**cut.top) == [node.x, node.y, node.z]).all(axis=1)
        for photo in context.training_photos:
            tracks = np.unique(owner[points.track_photos == photo])
            tracks = tracks[inside[tracks]]
            pixel, _, visible = context.photos.cameras.project(photo, points.xyz[tracks])
            at = (pixel[visible] // PATCH).astype(np.int64)
            for column, row in {tuple(a) for a in at.tolist() if (at == a).all(axis=1).sum() >= 3}:
                mine = (patches.photo == photo) & (patches.column == column) & (patches.row == row)
                seen += 1
                missed += not np.isin(np.flatnonzero(mine), chosen).all()
    assert seen > 20
    assert missed <= 0.02 * seen


def test_the_same_patches_go_with_a_treelet_whoever_is_asked_for_too(
    context: Context, index: SceneIndex, arena: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "OVERLAP_COPIES", 0.0)
    patches = all_patches(context.photos.cameras, context.training_photos)
    shared, octree = context.read_shared(), Octree.from_keys(index.keys)
    cut = cut_of(context, index)
    together = assign_patches(context, arena.arena, shared, patches, cut, octree)
    for key in cut.root_keys[:2].tolist():
        one = BandCut(top=cut.top, bottom=cut.bottom, root_keys=np.array([key]))
        assert np.array_equal(assign_patches(context, arena.arena, shared, patches, one, octree)[key], together[key])
    nobody = BandCut(top=cut.top, bottom=cut.bottom, root_keys=np.empty(0, np.int64))
    assert assign_patches(context, arena.arena, shared, patches, nobody, octree) == {}


def test_every_patch_goes_about_once_and_a_little_more(
    context: Context, index: SceneIndex, arena: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = all_patches(context.photos.cameras, context.training_photos)
    shared, octree = context.read_shared(), Octree.from_keys(index.keys)
    cut = cut_of(context, index)

    def copies() -> float:
        found = assign_patches(context, arena.arena, shared, patches, cut, octree)
        return sum(map(len, found.values())) / patches.count

    both = copies()
    monkeypatch.setattr(assignment, "OVERLAP_COPIES", 0.0)
    core = copies()
    assert 0.5 < core < 1.1
    assert core < both < 1.25 * core
