"""Photos that the seed stage did not see get the transform that makes the scene look like them."""

import functools
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.appearance import fit_missing, fit_photos
from rendering.random_scenes import make_scene, near_keys, poses_around

from infnerf_tiles.arrays import Float64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.metrics import apply_affine
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.video import to_uint8
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context


def transforms(rng: np.random.Generator, count: int) -> Float64:
    """Some contrast, some mixing, an offset."""
    near: Float64 = np.tile(np.eye(3, 4), (count, 1, 1)) + rng.uniform(-0.08, 0.08, (count, 3, 4))
    near[:, :, :3] *= 0.75
    return near


def test_unknown_photos_are_fitted_and_the_others_left_alone(
    rng: np.random.Generator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "scene.zarr"
    make_scene(place, keys=near_keys(2, (1.0, 1.0, 1.0), 2.0), photos=poses_around(), density=3.0, noise=0.2).close()
    with Scene.open(place) as scene, Renderer(scene, threads=1) as renderer:
        cameras, names, is_test = scene.cameras, scene.names, scene.is_test
        true = transforms(rng, len(names))
        for i, name in enumerate(names):
            drawn = renderer.render(cameras.camera(i), cameras.camera_to_world[i]).rgb
            iio.imwrite(tmp_path / name, to_uint8(apply_affine(true[i], drawn).astype(np.float32)))
        settings = scene.settings
    train = np.flatnonzero(~is_test)
    (tmp_path / names[train[-1]]).unlink()
    photos = PosedPhotos(
        root=tmp_path, names=names, paths=tuple(tmp_path / n for n in names), mask_paths=(None,) * len(names),
        cameras=cameras, is_test=is_test, points=None, rejected=(), georeference=None, downscale=1,
    )  # fmt: skip
    with SceneStore.open(place, "r+") as store:
        before = store.read_small("appearance")["affine"].copy()
        known = np.zeros(len(names), np.uint8)
        known[train[0]] = 1
        store.write_small("appearance", {"affine": before, "known": known})
        context = Context(store, photos, settings)
        fitted = train[1:-1]
        fit = functools.partial(fit_photos, context, threads=1)
        assert fit_missing(context, store, fit) == len(fitted) > 0
        after = store.read_small("appearance")
        others = np.setdiff1d(np.arange(len(names)), fitted)
        assert np.array_equal(after["affine"][others], before[others])
        assert np.flatnonzero(after["known"]).tolist() == sorted([int(train[0]), *fitted.tolist()])
        assert names[train[-1]] in caplog.text
        scene = Scene.of_store(store)
        with Renderer(scene, threads=1) as renderer:
            for i in fitted.tolist():
                drawn = renderer.render(cameras.camera(i), cameras.camera_to_world[i]).rgb
                away = np.abs(apply_affine(after["affine"][i], drawn) - apply_affine(true[i], drawn)).mean()
                assert away < 0.25 * np.abs(drawn - apply_affine(true[i], drawn)).mean()
        # what is known is not fitted again; what could not be read is asked for again
        caplog.clear()
        assert fit_missing(context, store, fit) == 0
        assert names[train[-1]] in caplog.text
