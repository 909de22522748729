"""Where a band is trained in part, photos that see none of what is left are not looked at; nothing else changes."""

from pathlib import Path
from typing import Any

import infnerf_tiles.pipelines.bands as bands
import numpy as np
import pytest
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, open_context, tiny

from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset
from infnerf_tiles.training.assignment import assignment_margin
from infnerf_tiles.training.pixel_store import read_assignment
from infnerf_tiles.training.pixel_tasks import AssignTask, PixelTask, assign_photos
from infnerf_tiles.training.tasks import TrainTask
from infnerf_tiles.training.views import photos_in_reach

SETTINGS = tiny("training.passes=0.2", "octree.treelet_height=1", "octree.max_level=3", "octree.min_points=30")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reach") / "city"
    write_city_dataset(folder, blocks=(4, 1), num_photos=24, size=(64, 48), supersample=1, num_points=2000)
    return folder


@pytest.fixture(scope="module")
def trained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = build_scene(city, tmp_path_factory.mktemp("reach") / "scene.zarr", SETTINGS)
    assert train(scene, threads=1).remaining == 0
    set_threads(None)
    return scene


def test_who_gets_a_patch_is_in_reach(trained: str, city: Path) -> None:
    base = TrainTask(scene=trained, dataset=str(city), settings=SETTINGS, threads=1)
    spared = 0
    with SceneStore.open(trained, "r+") as store:
        context, index = open_context(store, city, SETTINGS), store.read_index()
        photos = np.array(context.training_photos, np.int64)
        for band in range(1, len(store.header.band_levels)):
            roots = np.sort(index.root_keys[index.bands == band])
            task = PixelTask(base=base, band=band, chunk=0, photos=tuple(photos.tolist()), roots=roots)
            assign_photos(AssignTask(chunks=(task,)))
            for key, patches in read_assignment(store, band, 0).items():
                reach = photos_in_reach(context, photos, np.array([key]), assignment_margin(context))
                assert np.isin(patches.photo, photos[reach]).all()
                spared += int((~reach).sum())
    assert spared > 0


def test_cubes_taken_together_are_on_the_safe_side(trained: str, city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SceneStore.open(trained) as store:
        context, index = open_context(store, city, SETTINGS), store.read_index()
        photos = np.array(context.training_photos, np.int64)
        roots = index.root_keys[index.bands == 3][:3]
        exact = photos_in_reach(context, photos, roots)
        assert not exact.all()
        assert not photos_in_reach(context, photos, roots[:0]).any()
        monkeypatch.setattr("infnerf_tiles.training.views._MOST_CUBES", 1)
        assert photos_in_reach(context, photos, roots)[exact].all()


def test_redoing_a_treelet_looks_at_the_photos_that_may_see_it(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SceneStore.open(trained) as store:
        index = store.read_index()
        name = str(NodeId.from_key(int(np.sort(index.root_keys[index.bands == 3])[0])))
    looked: list[int] = []
    assign = bands.assign_photos

    def counted(task: AssignTask, progress: Any = None) -> Any:
        looked.extend(photo for chunk in task.chunks for photo in chunk.photos)
        return assign(task, progress)

    monkeypatch.setattr(bands, "assign_photos", counted)
    few, every = copy_scene(trained, tmp_path / "few.zarr"), copy_scene(trained, tmp_path / "every.zarr")
    reports = [train(few, redo=name, threads=1).reports]
    spared, looked[:] = set(looked), []
    with monkeypatch.context() as patch:
        patch.setattr(bands, "photos_in_reach", lambda context, photos, *_: np.ones(len(photos), np.bool_))
        reports.append(train(every, redo=name, threads=1).reports)
    assert len(spared) < len(set(looked))
    assert [r.pixels for r in reports[0]] == [r.pixels for r in reports[1]]
    assert reports[0][0].pixels > 0
    assert differences(learned(few), learned(every)) == []
