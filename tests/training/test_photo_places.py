"""Where a scene's photos are looked for: a folder given by name, a data set that has moved since build."""

from pathlib import Path

import pytest
from training.small_scenes import build_scene, write_city

from infnerf_tiles.errors import DatasetError
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.inputs import photo_places


@pytest.fixture
def city(tmp_path: Path) -> Path:
    folder = write_city(tmp_path / "city")
    (folder / "images").rename(folder / "thumbnails")
    return folder


def test_a_folder_of_photos_may_be_named_as_seen_from_the_data_set(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = build_scene(Path("city"), Path("scene.zarr"), images=Path("thumbnails"))
    with SceneStore.open(scene) as store:
        assert photo_places(store.header, None, None) == (str(city), str(city / "thumbnails"))
        assert photo_places(store.header, None, "thumbnails") == (str(city), str(city / "thumbnails"))
        (tmp_path / "thumbnails").mkdir()  # what is here comes first
        assert photo_places(store.header, None, "thumbnails") == (str(city), str(tmp_path / "thumbnails"))


def test_photos_move_with_the_data_set_that_they_lie_in(city: Path, tmp_path: Path) -> None:
    scene = build_scene(city, tmp_path / "scene.zarr", images=city / "thumbnails")
    moved = tmp_path / "moved"
    city.rename(moved)
    with SceneStore.open(scene) as store:
        assert photo_places(store.header, str(moved), None) == (str(moved), str(moved / "thumbnails"))
    apart = tmp_path / "apart"
    (moved / "thumbnails").rename(apart)
    scene = build_scene(moved, tmp_path / "other.zarr", images=apart)
    with SceneStore.open(scene) as store:
        assert photo_places(store.header, str(tmp_path), None) == (str(tmp_path), str(apart))


def test_a_scene_that_names_no_data_set_asks_for_it(city: Path, tmp_path: Path) -> None:
    scene = build_scene(city, tmp_path / "scene.zarr", images=city / "thumbnails")
    with SceneStore.open(scene, "r+") as store:
        inputs = store.header.settings["inputs"]
        store.change_settings({**store.header.settings, "inputs": {**inputs, "dataset": ""}})
        with pytest.raises(DatasetError, match="--data"):
            photo_places(store.header, None, None)
        assert photo_places(store.header, str(city), None)[0] == str(city)
