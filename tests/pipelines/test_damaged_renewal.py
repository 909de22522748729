"""A change that was begun and whose record got damaged: told once, with a next step that works."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, some_photos, tiny, write_city

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify

SETTINGS = tiny(
    "training.passes=0.1", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60", "data.test_every=5"
)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_city(tmp_path_factory.mktemp("renewal") / "city")
    (folder / "split.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def trained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("renewal")
    data = some_photos(read_dataset(city), np.arange(8), folder / "former")
    scene = build_scene(data, folder / "scene.zarr", SETTINGS)
    train(scene, threads=1)
    return scene


@pytest.mark.parametrize(
    ("died_at", "begun"),
    [("write_small", False), ("change_settings", False), ("write_cameras", False), ("commit", True)],
)
def test_photos_can_be_added_again(
    died_at: str, begun: bool, city: Path, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    before = learned(scene)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SceneStore, died_at, die)
        with pytest.raises(Killed):
            add_photos(city, scene)
    (Path(scene) / "scratch" / "renewal" / "zarr.json").write_bytes(b"{")
    with pytest.raises(DamagedStoreError, match="all treelets" if begun else "as it was") as error:
        train(scene, data=str(city), threads=1)
    assert "build --add" in str(error.value)
    with Scene.open(scene) as opened:
        assert len(opened.names) == len(opened.affine) == 8 + begun
    with SceneStore.open(scene) as store:
        assert verify(store).ok
    if not begun:
        assert differences(learned(scene), before) == []
    report = add_photos(city, scene)
    assert report.photos == 9
    assert report.waiting > 0
    assert (report.kept == 0) or not begun
    summary = train(scene, threads=1)
    assert (summary.treelets, summary.remaining) == (report.waiting, 0)
