"""Photo and mask files of every kind, whole and damaged."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from capture_files import png_bytes, texture, tiff_bytes, write_jpeg, write_png
from PIL import Image

from infnerf_tiles.data import codecs
from infnerf_tiles.data.codecs import check_photo, decode_mask, decode_photo, photo_size
from infnerf_tiles.data.pyramid import reduce_box
from infnerf_tiles.errors import PhotoError

RGB = texture()
HEIGHT, WIDTH = RGB.shape[:2]
GREY = RGB[:, :, 0]
RNG = np.random.default_rng(1)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA[:10] = 255


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def repeated(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def over_white(rgb: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weight = alpha[:, :, None] / 255
    return np.rint(rgb * weight + 255 * (1 - weight)).astype(np.uint8)


WIDE = RGB.astype(np.uint16) * 256 + RNG.integers(0, 256, RGB.shape).astype(np.uint16)
PALETTE = Image.fromarray(RGB).quantize(64)

LOSSLESS = {
    "grey.png": (png_bytes(GREY), repeated(GREY)),
    "rgb.PNG": (png_bytes(RGB), RGB),
    "grey16.png": (png_bytes(WIDE[:, :, 0]), repeated(GREY)),
    "rgb16.png": (png_bytes(WIDE), RGB),
    "palette.png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "bits.png": (saved(Image.fromarray(GREY > 100), "PNG"), repeated((GREY > 100) * np.uint8(255))),
    "grey.tif": (tiff_bytes(GREY[:, :, None]), repeated(GREY)),
    "rgb.tif": (tiff_bytes(RGB), RGB),
    "grey16.tif": (tiff_bytes(WIDE[:, :, :1]), repeated(GREY)),
    "rgb16.tiff": (tiff_bytes(WIDE), RGB),
    "lzw.tif": (saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "rgb.webp": (saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "rgb.bmp": (saved(Image.fromarray(RGB), "BMP"), RGB),
    "png-called.jpg": (png_bytes(RGB), RGB),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_kinds_decode_exactly(tmp_path: Path, name: str) -> None:
    data, expected = LOSSLESS[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert photo_size(path) == check_photo(path) == (WIDTH, HEIGHT)
    photo = decode_photo(path)
    assert photo.rgb.dtype == np.uint8
    assert photo.rgb.flags["C_CONTIGUOUS"]
    assert photo.mask is None
    np.testing.assert_array_equal(photo.rgb, expected)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(RGB), {}),
        (Image.fromarray(RGB), {"subsampling": 0}),
        (Image.fromarray(RGB), {"progressive": True}),
        (Image.fromarray(RGB), {"keep_rgb": True}),
        (Image.fromarray(GREY), {}),
        (Image.fromarray(RGB).convert("CMYK"), {}),
    ],
    ids=["420", "444", "progressive", "rgb", "grey", "cmyk"],
)
def test_jpeg_kinds_decode_closely(tmp_path: Path, image: Image.Image, options: dict[str, Any]) -> None:
    path = tmp_path / "photo.JPG"
    path.write_bytes(saved(image, "JPEG", quality=98, **options))
    assert photo_size(path) == check_photo(path) == (WIDTH, HEIGHT)
    photo = decode_photo(path)
    assert photo.mask is None
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(photo.rgb - expected).mean() < 2
    np.testing.assert_allclose(photo.rgb, np.asarray(Image.open(path).convert("RGB")).astype(int), atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_never_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(RGB)
    jpeg = saved(image, "JPEG", quality=98, exif=exif)
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(saved(image, "JPEG", quality=98))
    kinds = {"a.png": saved(image, "PNG", exif=exif), "a.tif": tiff_bytes(RGB, orientation), "a.jpg": jpeg}
    for name, data in kinds.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert check_photo(path) == (WIDTH, HEIGHT)
        expected = decode_photo(plain).rgb if name == "a.jpg" else RGB
        np.testing.assert_array_equal(decode_photo(path).rgb, expected)


@pytest.mark.parametrize("kind", ["rgba.png", "rgba.tif", "grey.png", "palette.png"])
def test_alpha_is_composited_over_white_and_marks_what_is_opaque(tmp_path: Path, kind: str) -> None:
    colour = RGB if kind.startswith("rgba") else repeated(GREY)
    alpha = ALPHA
    rgba = np.dstack([RGB, ALPHA])
    if kind == "palette.png":
        indices = Image.fromarray(GREY).convert("P")
        data = saved(indices, "PNG", transparency=int(GREY[30, 40]))
        colour = np.asarray(indices.convert("RGB"))
        alpha = np.where(np.asarray(indices) == GREY[30, 40], 0, 255).astype(np.uint8)
    else:
        data = {"rgba.png": png_bytes(rgba), "rgba.tif": tiff_bytes(rgba), "grey.png": png_bytes(rgba[:, :, [0, 3]])}[
            kind
        ]
    path = tmp_path / kind
    path.write_bytes(data)
    photo = decode_photo(path)
    np.testing.assert_allclose(photo.rgb, over_white(colour, alpha).astype(int), atol=1)
    assert photo.mask is not None
    np.testing.assert_array_equal(photo.mask, alpha == 255)
    assert not photo.mask.all()

    reduced = decode_photo(path, 3)
    assert reduced.mask is not None
    np.testing.assert_array_equal(reduced.rgb, reduce_box(photo.rgb, 3))
    assert reduced.mask.shape == reduced.rgb.shape[:2]


def test_alpha_that_hides_nothing_gives_no_mask(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.dstack([RGB, np.full_like(GREY, 255)]))
    photo = decode_photo(path)
    assert photo.mask is None
    np.testing.assert_array_equal(photo.rgb, RGB)


def test_downscale_is_the_box_filter(tmp_path: Path) -> None:
    for path in (write_jpeg(tmp_path / "a.jpg"), write_png(tmp_path / "a.png", RGB)):
        full = decode_photo(path).rgb
        np.testing.assert_array_equal(decode_photo(path, 7).rgb, reduce_box(full, 7))
        with pytest.raises(
            PhotoError, match=r"a\.\w+: expected a reduction by 1 to 60 .*, got 61; lower data.downscale"
        ):
            decode_photo(path, 61)


def jpeg_bytes(**options: Any) -> bytes:
    return saved(Image.fromarray(RGB), "JPEG", quality=92, **options)


TRUNCATABLE = {
    "a.jpg": jpeg_bytes(),
    "progressive.jpg": jpeg_bytes(progressive=True),
    "cmyk.jpg": saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "a.png": png_bytes(RGB),
    "wide.png": png_bytes(WIDE),
    "a.tif": tiff_bytes(RGB),
    "lzw.tif": saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    "a.webp": saved(Image.fromarray(RGB), "WEBP", lossless=True),
    "a.bmp": saved(Image.fromarray(RGB), "BMP"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about short TIFF headers
@pytest.mark.parametrize("name", TRUNCATABLE)
@pytest.mark.parametrize("kept", [0, 2, 20, 0.3, 0.8, -60])
def test_a_truncated_photo_is_found(tmp_path: Path, name: str, kept: float) -> None:
    data = TRUNCATABLE[name]
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * kept)] if 0 < kept < 1 else data[: int(kept)])
    for call in (decode_photo, check_photo):
        with pytest.raises(PhotoError, match=rf"{name}: expected .*got .*again"):
            call(path)


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "cmyk.jpg", "a.tif", "a.bmp", "a.webp"])
def test_even_a_few_missing_bytes_are_found(tmp_path: Path, name: str, cut: int) -> None:
    path = tmp_path / name
    path.write_bytes(TRUNCATABLE[name][:-cut])
    for call in (decode_photo, check_photo):
        with pytest.raises(PhotoError, match=name):
            call(path)


def test_a_png_without_its_end_is_used_if_all_pixels_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(RGB)[:-12])
    assert check_photo(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decode_photo(path).rgb, RGB)


def test_a_truncated_jpeg_padded_to_its_length_is_found(tmp_path: Path) -> None:
    """What an interrupted download into a file of full length leaves."""
    data = jpeg_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with pytest.raises(PhotoError, match="truncated"):
        check_photo(path)
    with pytest.raises(PhotoError, match="truncated"):
        decode_photo(path)


def test_a_whole_photo_with_something_behind_it_is_used(tmp_path: Path) -> None:
    for name, data in {"a.jpg": jpeg_bytes(), "a.png": png_bytes(RGB)}.items():
        plain, path = tmp_path / f"plain-{name}", tmp_path / name
        plain.write_bytes(data)
        for tail in (b"\0" * 10, b"a film of the same moment" * 100):
            path.write_bytes(data + tail)
            assert check_photo(path) == (WIDTH, HEIGHT)
            np.testing.assert_array_equal(decode_photo(path).rgb, decode_photo(plain).rgb)


def test_a_whole_file_is_not_decoded_to_check_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(codecs, "_load", refuse)
    for name in ("a.jpg", "progressive.jpg", "cmyk.jpg", "a.png", "a.tif", "lzw.tif"):
        (tmp_path / name).write_bytes(TRUNCATABLE[name])
        assert check_photo(tmp_path / name) == (WIDTH, HEIGHT)


def test_damage_inside_a_jpeg_is_found(tmp_path: Path) -> None:
    """Entropy-coded bytes replaced by a marker: libjpeg only warns, and leaves the rest of the picture grey."""
    data = bytearray(jpeg_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff\xd0" * 20
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(PhotoError, match=r"a\.jpg: .*damaged"):
        decode_photo(path)


def test_a_harmless_warning_is_logged_and_the_photo_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some cameras leave stray bytes before the end marker."""
    data = jpeg_bytes()
    path, plain = tmp_path / "a.jpg", tmp_path / "plain.jpg"
    plain.write_bytes(data)
    path.write_bytes(data[:-2] + b"\0" * 8 + data[-2:])
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(path.read_bytes())
    np.testing.assert_array_equal(decode_photo(path).rgb, decode_photo(plain).rgb)
    assert "extraneous" in caplog.text


def test_a_harmless_warning_does_not_hide_a_truncation(tmp_path: Path) -> None:
    """libjpeg reports only its first warning."""
    data = jpeg_bytes(restart_marker_blocks=4)
    marker = data.index(b"\xff\xd1")
    stray = data[:marker] + b"\0" * 8 + data[marker:]
    path = tmp_path / "a.jpg"
    path.write_bytes(stray)
    decode_photo(path)
    path.write_bytes(stray[:-200])
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(path.read_bytes())
    with pytest.raises(PhotoError, match=r"a\.jpg: .*truncated"):
        decode_photo(path)


@pytest.mark.parametrize("data", [b"", b"hello, this is text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_photo_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for call in (decode_photo, photo_size, check_photo, decode_mask):
        with pytest.raises(PhotoError, match=r"a\.jpg: expected"):
            call(path)


def test_a_missing_photo_is_refused(tmp_path: Path) -> None:
    for call in (decode_photo, photo_size, check_photo, decode_mask):
        with pytest.raises(PhotoError, match=r"gone\.jpg: expected a readable .* file, got: No such file"):
            call(tmp_path / "gone.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_a_claim_of_absurd_size_is_refused_before_decoding(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(TRUNCATABLE[name])
    monkeypatch.setattr(codecs, "MAX_PIXELS", WIDTH * HEIGHT)
    decode_photo(path)
    monkeypatch.setattr(codecs, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for call in (photo_size, decode_photo, decode_mask):
        with pytest.raises(PhotoError, match=r"expected 1 to 4799 pixels, got 80x60; the header is damaged"):
            call(path)


@pytest.mark.parametrize("form", ["TIFF", "WEBP"])
def test_aerial_sizes_pass_pillows_limit(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr(codecs, "_UNLIMITED_PIXELS", 50)
    path = tmp_path / "a"
    path.write_bytes(saved(Image.fromarray(RGB), form, lossless=True))
    assert photo_size(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decode_photo(path).rgb, RGB)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_float_photos_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    path.write_bytes(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"))
    with pytest.raises(PhotoError, match=r"depth\.tif: expected 8 or 16 bits per channel, got float32"):
        decode_photo(path)


KEEP = GREY > 100
COLOURED = np.where(KEEP[:, :, None], np.array([0, 0, 7], np.uint8), 0).astype(np.uint8)
MASKS = {
    "grey": png_bytes(KEEP * np.uint8(255)),
    "faint": png_bytes(KEEP * np.uint8(1)),
    "16-bit": png_bytes(KEEP * np.uint16(3)),
    "bits": saved(Image.fromarray(KEEP), "PNG"),
    "colour": png_bytes(COLOURED),
    "grey, opaque": png_bytes(np.dstack([KEEP * np.uint8(255), np.full_like(GREY, 255)])),
    "colour, opaque": png_bytes(np.dstack([COLOURED, np.full_like(GREY, 255)])),
    "in alpha": png_bytes(np.dstack([RGB | 1, KEEP * np.uint8(255)])),
    "tiff": tiff_bytes((KEEP * np.uint8(255))[:, :, None]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_true_where_nonzero(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mask"
    path.write_bytes(MASKS[kind])
    np.testing.assert_array_equal(decode_mask(path), KEEP)
    blocks = KEEP[:60, :80].reshape(30, 2, 40, 2).all(axis=(1, 3))
    np.testing.assert_array_equal(decode_mask(path, 2), blocks)


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture; convert it to JPEG"),
        ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC picture"),
        ("a.jpg", b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF picture"),
        ("a.jpg", b"\0\0\0\x1cftypisom\0\0\0\0", "a video"),
        ("a.CR2", b"II*\0\x10\0\0\0CR\x02\0", r"a RAW photo \(CR2\); develop it"),
        ("a.NEF", b"MM\0*\0\0\0\x08", r"a RAW photo \(NEF\)"),
        ("a.dng", b"II*\0\x08\0\0\0", r"a RAW photo \(DNG\)"),
        ("a.png", b"\x76\x2f\x31\x01\2\0\0\0", "an OpenEXR picture"),
        ("a.gif", b"GIF89a", "a GIF picture"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 picture"),
        ("a.jpg", b"<!DOCTYPE HTML><html>", "a web page; the download failed"),
        ("a.jpg", b"\n<html>404", "a web page"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of git-lfs .*git lfs pull"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str, head: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(head + bytes(4000))
    for read in (check_photo, photo_size, decode_photo, decode_mask):
        with pytest.raises(PhotoError, match=rf"{name}: expected a JPEG, PNG, TIFF, WebP or BMP file, got {words}"):
            read(path)


def test_a_tiff_of_floats_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)).save(path)
    for read in (check_photo, decode_photo):
        with pytest.raises(PhotoError, match="expected 8 or 16 bits per channel, got float32; export it"):
            read(path)
    assert photo_size(path) == (8, 6)
    assert decode_mask(path).sum() == 47
