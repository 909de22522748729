"""Which mask belongs to which photo, what is said of those that do not fit, and what masks mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from capture_files import HEIGHT, PINHOLE, SIX_NAMES, WIDTH, circle, opengl_matrix, write_capture, write_json, write_png

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.photos import PhotoCache, decode_mask

MASK = np.full((HEIGHT, WIDTH), 255, np.uint8)
MASK[:, :33] = 0


def jpeg_mask(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """MASK with the rings of a JPEG; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(MASK[:, :, None], quality=60, colorspace="GRAY", colorsubsampling="Gray"))
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = simplejpeg.decode_jpeg(path.read_bytes(), colorspace="GRAY")[:, :, 0]
    return pixels


@pytest.mark.parametrize("form", ["masks/{name}.png", "masks/{stem}.png", "masks/{name}", "mask/{name}.png"])
def test_every_photo_finds_its_mask(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path, cameras=(PINHOLE,))
    for name in SIX_NAMES:
        path = tmp_path / form.format(name=name, stem=Path(name).stem)
        jpeg_mask(path) if path.suffix == ".jpg" else write_png(path, MASK)
    photos = read_dataset(tmp_path)
    assert photos.num_masked == 6
    assert caplog.text == ""
    usable = PhotoCache(1 << 20).get(photos.photo_file(0)).mask
    assert usable is not None
    np.testing.assert_array_equal(usable, MASK == 255)


def test_rings_of_a_jpeg_mask_are_not_used(tmp_path: Path) -> None:
    pixels = jpeg_mask(tmp_path / "mask.jpg")
    assert ((pixels > 0) & (MASK == 0)).any()
    np.testing.assert_array_equal(decode_mask(tmp_path / "mask.jpg"), MASK == 255)
    # other files mean what they hold
    np.testing.assert_array_equal(decode_mask(write_png(tmp_path / "mask.png", pixels)), pixels > 0)


def test_masks_that_belong_to_no_photo_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path)
    for name in SIX_NAMES:
        write_png(tmp_path / f"masks/{Path(name).stem}_mask.png", MASK)
    (tmp_path / "masks/notes.txt").write_text("not a picture")
    assert read_dataset(tmp_path).num_masked == 0
    assert "masks: 6 of 6 files belong to no photo and are not used (photo_00_mask.png, " in caplog.text
    assert "NAME.jpg has the mask NAME.jpg.png, NAME.png or NAME.jpg" in caplog.text


def test_masks_of_some_photos_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_capture(tmp_path)
    for name in SIX_NAMES[:4]:
        write_png(tmp_path / f"masks/{name}.png", MASK)
    assert read_dataset(tmp_path).num_masked == 4
    assert "4 of 6 photos have a mask; the others are used as a whole (photo_04.jpg, photo_05.jpg)" in caplog.text
    caplog.clear()
    read_dataset(tmp_path, check_photos=False)
    assert caplog.text == ""


def test_masks_beside_reduced_photos_are_taken_first(tmp_path: Path) -> None:
    write_capture(tmp_path)
    (tmp_path / "images").rename(tmp_path / "images_2")
    for name in SIX_NAMES:
        write_png(tmp_path / f"masks/{name}.png", np.full((2 * HEIGHT, 2 * WIDTH), 255, np.uint8))
        write_png(tmp_path / f"masks_2/{name}.png", MASK)
    photos = read_dataset(tmp_path)
    assert photos.mask_paths[0] == tmp_path / f"masks_2/{SIX_NAMES[0]}.png"
    assert photos.num_photos == 6


def test_instant_ngps_dynamic_masks_leave_out_what_they_show(tmp_path: Path) -> None:
    write_capture(tmp_path, cameras=(PINHOLE,))
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": opengl_matrix(pose)}
        for name, pose in zip(SIX_NAMES, circle(6), strict=True)
    ]
    write_json(tmp_path / "ngp/transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames})
    (tmp_path / "images").rename(tmp_path / "ngp/images")
    write_png(tmp_path / "ngp/images/dynamic_mask_photo_02.png", MASK)
    photos = read_dataset(tmp_path / "ngp")
    assert photos.num_masked == 1
    usable = PhotoCache(1 << 20).get(photos.photo_file(2)).mask
    assert usable is not None
    np.testing.assert_array_equal(usable, MASK == 0)
    reduced = read_dataset(tmp_path / "ngp", downscale=2)
    usable = PhotoCache(1 << 20).get(reduced.photo_file(2)).mask
    assert usable is not None
    np.testing.assert_array_equal(usable, np.arange(WIDTH // 2) + np.zeros((HEIGHT // 2, 1)) < 16)


def test_masks_below_linked_folders_and_in_circles_are_found(tmp_path: Path) -> None:
    write_capture(tmp_path, names=("north/a.jpg", "north/b.jpg"))
    for name in ("a", "b"):
        write_png(tmp_path / f"elsewhere/{name}.png", MASK)
    (tmp_path / "masks").mkdir()
    try:
        (tmp_path / "masks/north").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere/again").symlink_to(tmp_path / "masks", target_is_directory=True)
    except OSError:
        pytest.skip("needs a file system with links")
    assert read_dataset(tmp_path).num_masked == 2
