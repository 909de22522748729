"""Pixels on their way to treelets: cut in chunks, written once, read back whole or streamed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from infnerf_tiles.pipelines.bands import cut_waves
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, open_context, ring, tiny, write_city

from infnerf_tiles.errors import BudgetError, PhotoError, StoreError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import pixel_store
from infnerf_tiles.training.assignment import BandCut, assign_patches
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.pixel_store import (
    PATCH_BYTES,
    RESIDENT_PATCH_BYTES,
    StreamedPixels,
    chunk_photos,
    drop_all_pixels,
    drop_pixels,
    list_chunks,
    open_pixels,
    read_assignment,
    read_pixels,
)
from infnerf_tiles.training.pixel_tasks import AssignTask, PixelTask, assign_photos, cut_photos
from infnerf_tiles.training.pixels import PixelSet, all_patches
from infnerf_tiles.training.state import TrainingState
from infnerf_tiles.training.surroundings import read_surroundings
from infnerf_tiles.training.tasks import TrainTask

SETTINGS = tiny("octree.min_points=20", "training.passes=1.0")
ROOT = NodeId(0, 0, 0, 0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A scene whose first band is trained, and its photos."""
    set_threads(1)
    folder = tmp_path_factory.mktemp("pixels")
    data = write_city(folder / "city", size=(96, 64))
    built = build_scene(data, folder / "scene.zarr", SETTINGS)
    calls = iter([False, False])
    train(built, threads=1, stop=lambda: next(calls, True))
    yield built, data
    set_threads(None)


@pytest.fixture
def context(scene: tuple[str, Path]) -> Iterator[Context]:
    with SceneStore.open(scene[0], "r+") as store:
        yield open_context(store, scene[1], SETTINGS)
        drop_all_pixels(store)


def jobs(context: Context, scene: tuple[str, Path], photos_each: int, band: int = 1) -> list[PixelTask]:
    index = context.store.read_index()
    base = TrainTask(scene=scene[0], dataset=str(scene[1]), settings=SETTINGS, threads=1)
    roots = np.sort(index.root_keys[index.bands == band])
    photos = context.training_photos
    runs = [tuple(photos[k : k + photos_each]) for k in range(0, len(photos), photos_each)]
    return [PixelTask(base=base, band=band, chunk=k, photos=run, roots=roots) for k, run in enumerate(runs)]


def same(a: PixelSet, b: PixelSet) -> bool:
    names = ("photo", "pyramid", "column", "row")
    return all(np.array_equal(getattr(a.patches, n), getattr(b.patches, n)) for n in names) and (
        np.array_equal(a.rgb, b.rgb) and np.array_equal(a.valid, b.valid)
    )


@pytest.mark.parametrize("photos_each", [1, 3, 100])
def test_chunk_by_chunk_every_treelet_gets_what_it_gets_at_once(
    scene: tuple[str, Path], context: Context, photos_each: int
) -> None:
    index = context.store.read_index()
    chunks = jobs(context, scene, photos_each)
    counts = assign_photos(AssignTask(chunks=tuple(chunks)))
    for job in chunks:
        assert cut_photos(job).patches == sum(counts[job.chunk].values())
    patches = all_patches(context.photos.cameras, context.training_photos)
    above = read_surroundings(context, index, ROOT, 1)
    arena = TrainingState(context.shape, ROOT, np.empty(0, np.int64), 0, above).arena
    levels = context.store.header.band_levels
    cut = BandCut(top=levels[1], bottom=context.store.header.max_level, root_keys=chunks[0].roots)
    expected = assign_patches(context, arena, context.read_shared(), patches, cut, Octree.from_keys(index.keys))
    given = 0
    for key, chosen in expected.items():
        name = str(NodeId.from_key(key))
        whole = PixelSet.gather(patches.select(chosen), context.read_pyramid)
        assert same(read_pixels(context.store, name, list_chunks(context.store, name)), whole)
        assert sum(c.get(key, 0) for c in counts.values()) == len(chosen)
        given += whole.num_pixels
        drop_pixels(context.store, name)
        assert list_chunks(context.store, name) == ()
    assert given > 1000


def test_a_wave_gets_the_pixels_of_its_treelets_only(scene: tuple[str, Path], context: Context) -> None:
    (job,) = jobs(context, scene, 100)
    assign_photos(AssignTask(chunks=(job,)))
    some = PixelTask(base=job.base, band=1, chunk=0, photos=job.photos, roots=job.roots[:1])
    cut_photos(some)
    stored = [key for key in job.roots.tolist() if list_chunks(context.store, str(NodeId.from_key(key)))]
    assert stored == job.roots[:1].tolist()
    # done again, as after the death of a worker, it leaves the same
    before = read_pixels(context.store, *_all(context, stored[0]))
    cut_photos(some)
    assert same(read_pixels(context.store, *_all(context, stored[0])), before)


def _all(context: Context, key: int) -> tuple[str, tuple[pixel_store.Chunk, ...]]:
    name = str(NodeId.from_key(key))
    return name, list_chunks(context.store, name)


def test_everything_goes_to_the_first_treelet_if_asked_for(scene: tuple[str, Path], context: Context) -> None:
    (job,) = jobs(context, scene, 100, band=0)
    every = PixelTask(base=job.base, band=0, chunk=0, photos=job.photos, roots=job.roots, everything=True)
    given = all_patches(context.photos.cameras, context.training_photos).count
    assert assign_photos(AssignTask(chunks=(every,))) == {0: {0: given}}


def test_pixels_beyond_the_budget_are_streamed_in_shuffled_order(scene: tuple[str, Path], context: Context) -> None:
    for job in jobs(context, scene, 1, band=0):
        assign_photos(AssignTask(chunks=(job,)))
        cut_photos(job)
    name, chunks = _all(context, 0)
    assert len(chunks) > 4
    total = sum(chunk.patches for chunk in chunks) * RESIDENT_PATCH_BYTES
    whole = open_pixels(context.store, name, None, 1.0, (0,))
    assert isinstance(whole, PixelSet)
    budget = total // 2
    streamed = open_pixels(context.store, name, budget, 1.0, (0,))
    assert isinstance(streamed, StreamedPixels)
    assert streamed.num_pixels == whole.num_pixels
    assert streamed.num_levels == whole.num_levels
    seen: list[tuple[int, ...]] = []
    for progress in np.linspace(0.0, 1.0, 50).tolist():
        streamed.seek(progress)
        assert streamed.resident_bytes <= budget
        seen.append(tuple(np.unique(streamed.patches.photo).tolist()))
        batch = streamed.draw(np.random.default_rng(0), 64)
        assert set(batch.photo.tolist()) <= set(seen[-1])
    assert {photo for window in seen for photo in window} == set(np.unique(whole.patches.photo).tolist())
    assert len(set(seen)) > 1
    again = StreamedPixels(context.store, name, budget, 1.0, (0,))
    again.seek(0.6)
    streamed.seek(0.6)
    assert np.array_equal(again.rgb, streamed.rgb)
    other = StreamedPixels(context.store, name, budget, 1.0, (1,))
    windows = []
    for progress in np.linspace(0.0, 1.0, 50).tolist():
        other.seek(progress)
        windows.append(tuple(np.unique(other.patches.photo).tolist()))
    assert windows != seen


def test_pixels_that_went_are_named(scene: tuple[str, Path], context: Context) -> None:
    (job,) = jobs(context, scene, 100)
    with pytest.raises(StoreError, match="assignment"):
        read_assignment(context.store, 1, 0)
    assign_photos(AssignTask(chunks=(job,)))
    cut_photos(job)
    name, chunks = _all(context, int(job.roots[0]))
    drop_pixels(context.store, name)
    with pytest.raises(StoreError, match=name):
        read_pixels(context.store, name, chunks)


def test_a_photo_that_went_since_is_named(scene: tuple[str, Path], context: Context) -> None:
    (job,) = jobs(context, scene, 100)
    assign_photos(AssignTask(chunks=(job,)))
    path = context.photos.paths[job.photos[3]]
    kept = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(PhotoError, match=path.name):
            cut_photos(job)
    finally:
        path.write_bytes(kept)


def test_chunks_of_photos_keep_to_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = ring(10)
    assert [len(run) for run in chunk_photos(cameras, range(10))] == [10]
    monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 3 * 4 * PATCH_BYTES)  # a photo of 32 x 32 pixels has four patches
    assert [len(run) for run in chunk_photos(cameras, range(10))] == [3, 3, 3, 1]
    monkeypatch.setattr(pixel_store, "CHUNK_BYTES", 1)
    assert chunk_photos(cameras, [2, 5]) == [(2,), (5,)]
    assert chunk_photos(cameras, []) == []


def test_waves_take_half_the_scratch_each() -> None:
    patches = dict.fromkeys(range(7), 10)
    scratch = 50 * PATCH_BYTES
    assert cut_waves(range(8), patches, scratch) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert cut_waves(range(8), {}, scratch) == [list(range(8))]
    with pytest.raises(BudgetError, match=rf"L0/0-0-0.*--scratch {2 * 30 * PATCH_BYTES}"):
        cut_waves([0], {0: 30}, scratch)
