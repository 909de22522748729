"""The render pipeline: options to files and a report."""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.render import RenderOptions, appearance_of, content_centre, render
from rendering.random_scenes import make_scene, near_keys

from infnerf_tiles.errors import SceneNotFoundError, SettingsError
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.inputs import scene_settings

SIZE = (20, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("render") / "scene.zarr"
    make_scene(place, keys=near_keys(3, (4.0, 4.0, 4.0), 1.0), density=1.0).close()
    return place


def test_one_picture_of_an_orbit(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "picture.png"
    report = render(str(folder), RenderOptions(output=output, size=SIZE, depth=True, threads=1))
    assert iio.imread(output).shape == (16, 20, 3)
    assert report.outputs == (str(output), str(tmp_path / "deep" / "picture_depth.png"))
    assert (report.frames, report.size) == (1, SIZE)
    assert report.samples > 0
    assert report.misses > 0
    assert report.damaged_nodes == ()
    assert json.loads(json.dumps(report.to_json()))["size"] == [20, 16]


def test_a_film_of_the_photos(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []
    options = RenderOptions(output=tmp_path / "film.mp4", path="dataset", frames=3, size=SIZE, threads=1)
    report = render(str(folder), options, lambda done, total: seen.append((done, total)))
    assert report.frames == 3
    assert seen[-1] == (3.0, 3)
    assert iio.improps(tmp_path / "film.mp4", plugin="pyav").shape == (3, 16, 20, 3)


def test_a_small_budget_draws_the_same_picture(folder: Path, tmp_path: Path) -> None:
    pictures = []
    for name, budget in (("a", None), ("b", 100_000)):
        output = tmp_path / f"{name}.png"
        render(str(folder), RenderOptions(output=output, size=SIZE, memory_budget=budget, threads=1))
        pictures.append(iio.imread(output))
    assert np.array_equal(*pictures)


def test_options_that_make_no_sense_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"one frame for a picture, got 5"):
        render(str(folder), RenderOptions(output=tmp_path / "a.png", frames=5))
    with pytest.raises(SettingsError, match="appearance: expected 'mean', 'none' or the name of one of the 5 photos"):
        render(str(folder), RenderOptions(output=tmp_path / "a.png", appearance="photo_9.png"))
    with pytest.raises(SceneNotFoundError):
        render(str(tmp_path / "nothing"), RenderOptions(output=tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()


def test_appearance_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Scene.open(folder) as scene:
        assert appearance_of(scene, "none") is None
        assert np.array_equal(appearance_of(scene, "mean"), scene.mean_affine)
        assert np.array_equal(appearance_of(scene, "photo_2.png"), scene.affine[2])
        assert not caplog.records
        # a test photo has no transform of its own
        assert np.array_equal(appearance_of(scene, "photo_1.png"), scene.mean_affine)
        assert "photo_1.png" in caplog.text


def test_the_centre_is_where_the_fine_nodes_are(folder: Path) -> None:
    with Scene.open(folder) as scene:
        assert np.abs(content_centre(scene) - 4.0).max() <= 4.0


def test_a_step_that_an_earlier_version_stored_is_drawn_with_the_smallest_allowed(tmp_path: Path) -> None:
    make_scene(tmp_path / "scene.zarr").close()
    with SceneStore.open(tmp_path / "scene.zarr", "r+") as store:
        stored = {**Settings().model_dump(mode="json"), **store.header.settings}
        store.change_settings({**stored, "rendering": {**stored["rendering"], "step_size": 0.004}})
    with Scene.open(tmp_path / "scene.zarr") as scene:
        assert scene.lattice().step == 1 / 64
        assert scene_settings(scene.header).rendering.step_size == 1 / 64
