"""Patches and the pixels drawn from them."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from training.small_scenes import ring

from infnerf_tiles.arrays import Bool, UInt8
from infnerf_tiles.data.photos import mask_pyramid, num_pyramid_levels, pyramid
from infnerf_tiles.errors import PhotoError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.training import pixels
from infnerf_tiles.training.pixels import PATCH, PixelSet, all_patches, patch_points

ODD = Camera("PINHOLE", 275, 133, (200.0, 200.0, 137.5, 66.5))
"""Three pyramid levels, none of them a whole number of patches."""


def cameras_of(camera: Camera, count: int) -> PosedCameras:
    return replace(ring(count), cameras=(camera,))


def ramp(camera: Camera) -> UInt8:
    """A photo whose colour says where a pixel's centre is: red across, green down."""
    x = (np.arange(camera.width) + 0.5) * 250.0 / camera.width
    y = (np.arange(camera.height) + 0.5) * 250.0 / camera.height
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    image[..., 0] = x.round()[None]
    image[..., 1] = y.round()[:, None]
    return image


def levels_of(image: UInt8, mask: Bool | None = None) -> list[tuple[UInt8, Bool | None]]:
    count = num_pyramid_levels(image.shape[1], image.shape[0])
    masks: list[Bool | None] = [None] * count
    if mask is not None:
        masks = list(mask_pyramid(mask, count))
    return list(zip(pyramid(image, count), masks, strict=True))


def test_all_patches_cover_each_pixel_of_every_level_once() -> None:
    cameras = cameras_of(ODD, 3)
    patches = all_patches(cameras, [0, 2])
    assert set(patches.photo.tolist()) == {0, 2}
    for photo in (0, 2):
        for p in range(3):
            w, h = ODD.width >> p, ODD.height >> p
            covered = np.zeros((h + PATCH, w + PATCH), np.int64)
            mine = (patches.photo == photo) & (patches.pyramid == p)
            for column, row in zip(patches.column[mine], patches.row[mine], strict=True):
                covered[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
            assert (covered[:h, :w] == 1).all()
    assert patches.pyramid.max() == 2


def test_no_photos_give_no_patches() -> None:
    assert all_patches(cameras_of(ODD, 2), []).count == 0
    pixels = PixelSet.gather(all_patches(cameras_of(ODD, 2), []), lambda _: [])
    assert pixels.num_pixels == 0


def test_every_pixel_of_a_photo_can_be_drawn_and_no_other() -> None:
    cameras = cameras_of(ODD, 1)
    pixels = PixelSet.gather(all_patches(cameras, [0]), lambda _: levels_of(ramp(ODD)))
    sizes = [(ODD.width >> p, ODD.height >> p) for p in range(3)]
    assert pixels.num_pixels == sum(w * h for w, h in sizes)
    batch = pixels.draw(np.random.default_rng(0), 20 * pixels.num_pixels)
    for p, (w, h) in enumerate(sizes):
        at = batch.xy[batch.pyramid == p] / 2**p - 0.5
        assert np.array_equal(at, at.round())
        assert (at >= 0).all()
        assert at[:, 0].max() == w - 1
        assert at[:, 1].max() == h - 1
        drawn = np.bincount((at[:, 1] * w + at[:, 0]).astype(np.int64), minlength=w * h)
        # 20 draws per pixel: the chi-square of a uniform draw has a mean of one per pixel
        assert abs(((drawn - 20.0) ** 2 / 20.0).mean() - 1.0) < 6.0 * np.sqrt(2.0 / (w * h)) + 0.01


def test_the_colour_of_a_pixel_is_that_of_its_centre_at_every_level() -> None:
    cameras = cameras_of(ODD, 1)
    pixels = PixelSet.gather(all_patches(cameras, [0]), lambda _: levels_of(ramp(ODD)))
    batch = pixels.draw(np.random.default_rng(1), 20000)
    assert set(batch.pyramid.tolist()) == {0, 1, 2}
    expected = batch.xy * 250.0 / [ODD.width, ODD.height]
    error = np.abs(batch.rgb[:, :2] * 255.0 - expected)
    assert error.max() < 1.01
    for p in range(3):
        mine = batch.pyramid == p
        # half a pixel is 0.45 * 2^p across and 0.94 * 2^p down; colours across rise by one from pixel to pixel, so that
        # reductions meet halves, which are rounded up
        across, down = (batch.rgb[mine, :2] * 255.0 - expected[mine]).mean(axis=0)
        assert abs(down) < 0.15
        assert -0.1 < across < (0.1 if p == 0 else 0.55)


def test_masked_pixels_are_never_drawn() -> None:
    mask = np.ones((ODD.height, ODD.width), np.bool_)
    mask[:, 100:] = False
    mask[32:48, 16:32] = False
    cameras = cameras_of(ODD, 1)
    levels = levels_of(ramp(ODD), mask)
    pixels = PixelSet.gather(all_patches(cameras, [0]), lambda _: levels)
    assert pixels.num_pixels == sum(int(m.sum()) for _, m in levels if m is not None)
    batch = pixels.draw(np.random.default_rng(2), 20000)
    for p in range(3):
        at = (batch.xy[batch.pyramid == p] / 2**p).astype(np.int64)
        valid = levels[p][1]
        assert valid is not None
        assert valid[at[:, 1], at[:, 0]].all()
        assert len(at) == pytest.approx(20000 * valid.sum() / pixels.num_pixels, rel=0.2)


def test_patches_without_a_valid_pixel_go() -> None:
    cameras = cameras_of(ODD, 2)
    nothing = np.zeros((ODD.height, ODD.width), np.bool_)
    pixels = PixelSet.gather(
        all_patches(cameras, [0, 1]), lambda photo: levels_of(ramp(ODD), nothing if photo == 0 else None)
    )
    assert set(pixels.patches.photo.tolist()) == {1}
    assert set(pixels.draw(np.random.default_rng(0), 500).photo.tolist()) == {1}


def test_draws_follow_from_the_generator_alone() -> None:
    cameras = cameras_of(ODD, 2)
    pixels = PixelSet.gather(all_patches(cameras, [0, 1]), lambda photo: levels_of(ramp(ODD) // (photo + 1)))
    a, b = (pixels.draw(np.random.default_rng((3, 4)), 777) for _ in range(2))
    other = pixels.draw(np.random.default_rng((3, 5)), 777)
    for name in ("photo", "pyramid", "xy", "rgb"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
        assert len(getattr(a, name)) == 777
    assert not np.array_equal(a.xy, other.xy)
    assert a.rgb.max() <= 1.0


def test_gathered_patches_keep_their_own_pixels_in_any_order() -> None:
    cameras = cameras_of(ODD, 3)
    images = [np.random.default_rng(i).integers(0, 256, (ODD.height, ODD.width, 3)).astype(np.uint8) for i in range(3)]
    patches = all_patches(cameras, [0, 1, 2])
    shuffled = patches.select(np.random.default_rng(0).permutation(patches.count))
    asked: list[int] = []

    def read(photo: int) -> list[tuple[UInt8, Bool | None]]:
        asked.append(photo)
        return levels_of(images[photo])

    pixels = PixelSet.gather(shuffled, read)
    assert sorted(asked) == [0, 1, 2]
    batch = pixels.draw(np.random.default_rng(0), 3000)
    fine = batch.pyramid == 0
    at = batch.xy[fine].astype(np.int64)
    expected = np.array([images[f][y, x] for f, (x, y) in zip(batch.photo[fine], at, strict=True)])
    assert np.array_equal((batch.rgb[fine] * 255).round().astype(np.uint8), expected)


def test_patch_points_are_spread_over_the_patch() -> None:
    patches = all_patches(cameras_of(ODD, 1), [0])
    one, four = patch_points(patches, 1), patch_points(patches, 2)
    k = int(np.flatnonzero((patches.pyramid == 1) & (patches.column == 2) & (patches.row == 1))[0])
    assert one[k].tolist() == [[2 * (32 + 8), 2 * (16 + 8)]]
    assert four[k].tolist() == [[72.0, 40.0], [88.0, 40.0], [72.0, 56.0], [88.0, 56.0]]


def test_photos_are_read_a_few_at_a_time_with_the_same_result() -> None:
    cameras = cameras_of(ODD, 9)
    patches = all_patches(cameras, range(9))
    lock, begun, done = threading.Lock(), 0, 0

    def read(photo: int) -> list[tuple[UInt8, Bool | None]] | None:
        nonlocal begun, done
        with lock:
            begun += 1
            assert begun - done <= 3  # decoded side by side
        time.sleep(0.002 * (photo % 3))  # so that they end in another order
        with lock:
            done += 1
        return None if photo == 4 else levels_of(ramp(ODD) + np.uint8(photo))

    alone = PixelSet.gather(patches, read)
    side_by_side = PixelSet.gather(patches, read, 3)
    assert np.array_equal(alone.rgb, side_by_side.rgb)
    assert np.array_equal(alone.valid, side_by_side.valid)
    assert np.array_equal(alone.patches.photo, side_by_side.patches.photo)
    assert set(alone.patches.photo.tolist()) == set(range(9)) - {4}


@pytest.mark.parametrize("readers", [1, 3])
def test_of_photos_read_ahead_few_wait_and_an_error_ends_it(readers: int) -> None:
    taken: list[int] = []
    begun: list[int] = []

    def read(photo: int) -> int:
        begun.append(photo)
        if photo == 7:
            raise PhotoError("gone")
        return photo

    def take() -> None:
        for photo in pixels._read(range(20), read, readers):
            taken.append(photo)
            time.sleep(0.002)
            assert len(begun) - len(taken) <= readers

    with pytest.raises(PhotoError, match="gone"):
        take()
    assert taken == list(range(7))
    assert max(begun) <= 7 + readers
