"""Evaluation: photos that a scene itself has drawn, changed in known ways, give known scores."""

import json
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.surfaces import STRIP_VOXELS, STRIPS, StripSums, surfaces
from rendering.random_scenes import make_scene, near_keys, poses_around

from infnerf_tiles.arrays import UInt8
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.errors import DatasetError
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.metrics import apply_affine
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.video import to_uint8

WIDE = Camera("SIMPLE_PINHOLE", 128, 48, (120.0, 64.0, 24.0))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Opaque blocks around the middle, five posed photos of 128 x 48 pixels, two of them held out."""
    folder = tmp_path_factory.mktemp("evaluate") / "scene.zarr"
    cameras = replace(poses_around(), cameras=(WIDE,))
    make_scene(folder, keys=near_keys(2, (1.0, 1.0, 1.0), 2.0), photos=cameras, density=3.0, noise=0.2).close()
    return Scene.open(folder)


@pytest.fixture(scope="module")
def pictures(scene: Scene) -> list[Picture]:
    with Renderer(scene, threads=1) as renderer:
        return [renderer.render(WIDE, pose) for pose in scene.cameras.camera_to_world]


def photos_of(scene: Scene, folder: Path, images: list[UInt8], masks: list[UInt8 | None] | None = None) -> PosedPhotos:
    """A data set that holds `images` under the scene's names."""
    paths, mask_paths = [], []
    for i, (name, image) in enumerate(zip(scene.names, images, strict=True)):
        paths.append(folder / name)
        iio.imwrite(paths[-1], image)
        mask = None if masks is None else masks[i]
        mask_paths.append(None if mask is None else folder / f"mask_{name}")
        if mask is not None:
            iio.imwrite(folder / f"mask_{name}", mask)
    return PosedPhotos(
        root=folder, names=scene.names, paths=tuple(paths), mask_paths=tuple(mask_paths), cameras=scene.cameras,
        is_test=scene.is_test, points=None, rejected=(), georeference=None, downscale=1,
    )  # fmt: skip


def shown(scene: Scene, picture: Picture) -> UInt8:
    """The picture as an average photo would have it."""
    return to_uint8(apply_affine(scene.mean_affine, picture.rgb).astype(np.float32))


def test_photos_that_the_scene_has_drawn_score_perfectly(scene: Scene, pictures: list[Picture], tmp_path: Path) -> None:
    photos = photos_of(scene, tmp_path, [shown(scene, picture) for picture in pictures])
    calls: list[tuple[int, int]] = []
    report = evaluate(
        scene.store.name, threads=1, dataset=photos, progress=lambda done, total: calls.append((done, total))
    )
    assert report.images == int(scene.is_test.sum()) == 2
    assert [level.pyramid for level in report.levels] == [0, 1]
    assert report.levels[0].psnr is not None
    assert report.levels[0].psnr > 55
    assert report.levels[0].ssim is not None
    assert report.levels[0].ssim > 0.998
    assert [photo.name for photo in report.photos] == ["photo_1.png", "photo_3.png"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["split"] == "test"
    assert document["levels"][0].keys() >= {"pyramid", "psnr", "psnr_half", "ssim", "ssim_half", "lpips"}
    assert all(region["psnr"] > 50 for region in document["regions"])


def test_a_colour_cast_costs_the_plain_figure_and_not_the_half(
    scene: Scene, pictures: list[Picture], tmp_path: Path
) -> None:
    cast = np.array([[0.8, 0.05, 0.0, 0.05], [0.0, 0.9, 0.0, 0.0], [0.02, 0.0, 0.7, 0.1]])
    images = [to_uint8(np.clip(apply_affine(cast, picture.rgb), 0, 1).astype(np.float32)) for picture in pictures]
    report = evaluate(scene.store.name, threads=1, dataset=photos_of(scene, tmp_path, images))
    level = report.levels[0]
    assert level.psnr is not None
    assert level.psnr_half is not None
    assert level.psnr < 30
    assert level.psnr_half > 40
    assert level.ssim is not None
    assert level.ssim_half is not None
    assert 0.5 * (1.0 - level.ssim) > 1.0 - level.ssim_half
    assert all(region.psnr > 40 for region in report.regions)


def test_masked_pixels_do_not_count(scene: Scene, pictures: list[Picture], tmp_path: Path) -> None:
    images = [shown(scene, picture) for picture in pictures]
    mask = np.full((48, 128), 255, np.uint8)
    mask[10:30, 20:90] = 0
    for image in images:
        image[mask == 0] = 255 - image[mask == 0]
    with_mask = evaluate(scene.store.name, threads=1, dataset=photos_of(scene, tmp_path, images, [mask] * len(images)))
    without = evaluate(scene.store.name, threads=1, dataset=photos_of(scene, tmp_path, images))
    for masked, spoilt in zip(with_mask.levels[0].to_json().items(), without.levels[0].to_json().items(), strict=True):
        if masked[0].startswith(("psnr", "ssim")):
            assert masked[1] > spoilt[1] + (0.1 if masked[0].startswith("ssim") else 15)


def test_a_region_of_which_few_pixels_are_usable_is_still_listed(
    scene: Scene, pictures: list[Picture], tmp_path: Path
) -> None:
    mask = np.zeros((48, 128), np.uint8)
    mask[20:26, 60:70] = 255  # 60 pixels
    images = [shown(scene, picture) for picture in pictures]
    report = evaluate(scene.store.name, threads=1, dataset=photos_of(scene, tmp_path, images, [mask] * len(images)))
    assert 0 < sum(region.pixels for region in report.regions) <= 2 * 60
    assert all(region.psnr > 40 for region in report.regions)


def test_limit_takes_photos_evenly_and_train_photos_can_be_scored(
    scene: Scene, pictures: list[Picture], tmp_path: Path
) -> None:
    photos = photos_of(scene, tmp_path, [shown(scene, picture) for picture in pictures])
    report = evaluate(scene.store.name, threads=1, dataset=photos, split="train", limit=2)
    assert [photo.name for photo in report.photos] == ["photo_0.png", "photo_4.png"]


def test_missing_photos_are_told(scene: Scene, pictures: list[Picture], tmp_path: Path) -> None:
    photos = photos_of(scene, tmp_path, [shown(scene, picture) for picture in pictures])
    other = replace(photos, names=tuple(f"other_{i}.png" for i in range(photos.num_photos)))
    with pytest.raises(DatasetError, match="expected test photos to score, got none: 2 are missing"):
        evaluate(scene.store.name, threads=1, dataset=other)


def test_without_held_out_photos_the_others_are_proposed(
    scene: Scene, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_of(scene, tmp_path, [shown(scene, picture) for picture in pictures])
    none_held_out = replace(scene, is_test=np.zeros(len(scene.names), np.bool_))
    monkeypatch.setattr(Scene, "open", lambda _: none_held_out)
    with pytest.raises(DatasetError, match="--split train"):
        evaluate(scene.store.name, photos, threads=1)


def test_a_data_set_that_is_gone_is_told_with_the_next_step(scene: Scene, tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(DatasetError, match=r"posed photos|COLMAP model") as error:
            evaluate(scene.store.name, data=str(folder))
        assert str(folder) in str(error.value)
        assert "--data" in str(error.value)


def test_faces_of_nodes_and_treelets_are_where_they_should_be(scene: Scene) -> None:
    """A camera that looks straight down on planes of known height."""
    root, cells = scene.header.root, scene.header.cells
    voxel = root.edge / 4 / cells  # level 2, the deepest here and the second band's root level
    pose = np.array([[1.0, 0, 0, 1.0], [0, -1.0, 0, 1.0], [0, 0, -1.0, 60.0]])
    camera = Camera("SIMPLE_PINHOLE", 8, 8, (1e4, 4.0, 4.0))
    # level 2 is the second band's root level: its nodes' faces are treelets' faces
    faces, beside, nowhere = [3], [0, 2], list[int]()
    expected = {
        0.0: faces, 1.5 * voxel: faces, 2.5 * voxel: nowhere, 6.5 * voxel: beside, 10.5 * voxel: nowhere,
        root.edge / 4 - voxel: faces, root.edge / 4 - 9.5 * voxel: beside,
    }  # fmt: skip
    for height, strips in expected.items():
        flat = np.full((8, 8), 60.0 - height, np.float32)
        # looking almost straight down, at a place far from the other faces
        picture = Picture(
            rgb=np.zeros((8, 8, 3), np.float32), transmittance=np.zeros((8, 8), np.float32), depth=flat,
            level=np.full((8, 8), 2, np.float32), num_samples=0,
        )  # fmt: skip
        shifted = pose.copy()
        shifted[:2, 3] = root.edge / 8
        found = surfaces(scene, camera, shifted, picture, 0.0)
        upwards = found.strips[:, 2]
        assert upwards.all(axis=(1, 2)).nonzero()[0].tolist() == strips, height
        assert not np.delete(upwards, strips, axis=0).any(), height
        assert not found.strips[[1, 3], :2].any(), height
    hidden = replace(picture, transmittance=np.full((8, 8), 0.2, np.float32))
    assert not surfaces(scene, camera, shifted, hidden, 0.0).strips.any()
    assert STRIP_VOXELS == 2.0


def test_a_seam_shows_in_its_strip_only(rng: np.random.Generator) -> None:
    photo = rng.uniform(0.2, 0.8, (60, 60, 3))
    render = photo + rng.normal(0.0, 0.01, photo.shape)
    kind = np.zeros((4, 3, 60, 60), np.bool_)
    for k, first in enumerate((10, 20, 30, 40)):
        kind[k, :, :, first : first + 5] = True
    fine = StripSums()
    fine.add(kind, np.ones((60, 60), np.bool_), render, photo)
    for figures in fine.figures():
        assert figures.error_ratio == pytest.approx(1.0, abs=0.15)
        assert figures.gradient_ratio == pytest.approx(1.0, abs=0.15)
    torn = render.copy()
    torn[:, 42] += 0.5
    seams = StripSums()
    seams.add(kind, np.ones((60, 60), np.bool_), torn, photo)
    _, nodes, _, treelets = seams.figures()
    assert [figures.where for figures in seams.figures()] == list(STRIPS)
    assert nodes.error_ratio == pytest.approx(1.0, abs=0.15)
    assert treelets.error_ratio is not None
    assert treelets.gradient_ratio is not None
    assert treelets.error_ratio > 5
    assert treelets.gradient_ratio > 1.5


def test_photos_of_the_wrong_size_are_refused(scene: Scene, pictures: list[Picture], tmp_path: Path) -> None:
    photos = photos_of(scene, tmp_path, [shown(scene, picture)[:, :64] for picture in pictures])
    with pytest.raises(ValueError, match="expected 128x48"):
        evaluate(scene.store.name, threads=1, dataset=photos)
