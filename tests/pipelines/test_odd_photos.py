"""build, train, eval: photos that are very flat, and photos without a usable pixel."""

import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, tiny, write_city

from infnerf_tiles.errors import DatasetError
from infnerf_tiles.store.journal import read_all
from infnerf_tiles.store.scene_store import SceneStore

SETTINGS = tiny("training.passes=0.1", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60")


def test_photos_much_wider_than_high_are_trained_on_and_scored(tmp_path: Path) -> None:
    scene = build_scene(write_city(tmp_path / "city", size=(1024, 8)), tmp_path / "scene.zarr", SETTINGS)
    assert train(scene, threads=1).remaining == 0
    report = evaluate(scene, threads=1)
    assert [level.pyramid for level in report.levels] == [0, 1, 2, 3]
    assert all(level.psnr is not None and 3 < level.psnr < 60 for level in report.levels)


def _mask(data: Path, usable: int) -> None:
    """Masks that leave the first `usable` columns of every photo."""
    (data / "masks").mkdir()
    for path in (data / "images").iterdir():
        mask = np.zeros((48, 64), np.uint8)
        mask[:, :usable] = 255
        iio.imwrite(data / "masks" / f"{path.name}.png", mask)


def test_photos_without_a_usable_pixel_are_refused_with_the_reason(tmp_path: Path) -> None:
    data = write_city(tmp_path / "city")
    _mask(data, 0)
    scene = build_scene(data, tmp_path / "scene.zarr", SETTINGS)
    with pytest.raises(DatasetError, match=r"expected pixels to train on, got none .* 7 training photos; look at"):
        train(scene, threads=1)
    with SceneStore.open(scene) as store:
        assert not store.has_small("decoder")
    shutil.rmtree(data / "masks")
    _mask(data, 40)
    assert train(scene, accept_changes=True, threads=1).remaining == 0


def test_a_treelet_that_no_photo_shows_has_no_psnr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = build_scene(write_city(tmp_path / "city"), tmp_path / "scene.zarr", SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr("infnerf_tiles.training.pixel_store.list_chunks", lambda *_: ())
        summary = train(scene, threads=1)
    reports = {report.treelet: report for report in summary.reports}
    assert isinstance(reports.pop("seed").psnr, float)
    assert {report.psnr for report in reports.values()} == {None}
    with SceneStore.open(scene) as store:
        assert {record.psnr for record in read_all(store)} == {None}
