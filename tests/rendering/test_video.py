"""Films, numbered frames, full disks, and the colours of depth and level."""

import errno
import gc
import logging
import os
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest

from infnerf_tiles.arrays import UInt8
from infnerf_tiles.errors import SettingsError, StorageFullError
from infnerf_tiles.rendering import video
from infnerf_tiles.rendering.video import FrameWriter, depth_to_image, level_heat_map, to_uint8

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [128, 128, 128], [250, 240, 20]], dtype=np.uint8)


def stripes(height: int = 48, width: int = 80) -> UInt8:
    """Five vertical stripes of known colours."""
    return np.broadcast_to(COLOURS[np.arange(width) * 5 // width], (height, width, 3)).copy()


def test_film_is_h264_that_every_player_shows_with_its_size_rate_and_colours(tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "film.mp4"
    with FrameWriter(output, fps=29.97) as writer:
        for _ in range(7):
            writer.write(stripes())
    assert writer.num_frames == 7
    with av.open(output) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (80, 48, 7)
        assert float(stream.average_rate or 0) == pytest.approx(29.97)
        assert (int(stream.codec_context.colorspace), int(stream.codec_context.color_range)) == (
            1,
            1,
        )  # BT.709, limited
    frames = iio.imread(output, plugin="pyav")
    assert frames.shape == (7, 48, 80, 3)
    # The middle of every stripe: at their edges 4:2:0 shares colour between pixels.
    np.testing.assert_allclose(frames[3, 24, 8::16].astype(int), COLOURS.astype(int), atol=6)
    assert os.listdir(output.parent) == ["film.mp4"]


@pytest.mark.parametrize("size", [(47, 79), (1, 1), (2, 3)])
def test_films_of_odd_sizes_are_padded_with_their_own_edge(size: tuple[int, int], tmp_path: Path) -> None:
    frame = np.full((*size, 3), 200, dtype=np.uint8)
    with FrameWriter(tmp_path / "odd.mp4") as writer:
        writer.write(frame)
    back = iio.imread(tmp_path / "odd.mp4", plugin="pyav")
    assert back.shape == (1, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    np.testing.assert_allclose(back.astype(int), 200, atol=3)


def test_frames_keep_their_order_in_a_film(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "a.mp4") as writer:
        for grey in range(0, 250, 10):
            writer.write(np.full((32, 32, 3), grey, dtype=np.uint8))
    greys = iio.imread(tmp_path / "a.mp4", plugin="pyav").mean(axis=(1, 2, 3))
    np.testing.assert_allclose(greys, np.arange(0, 250, 10), atol=4)


def test_folder_gets_numbered_frames_exactly_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(3, 20, 31, 3), dtype=np.uint8)
    with FrameWriter(tmp_path / "frames") as writer:
        for frame in frames:
            writer.write(frame)
    assert sorted(os.listdir(tmp_path / "frames")) == [f"frame_{i:06d}.png" for i in range(3)]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(iio.imread(tmp_path / "frames" / f"frame_{i:06d}.png"), frame)


def test_a_folder_with_older_frames_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for count in (3, 1):
        with caplog.at_level(logging.WARNING), FrameWriter(tmp_path) as writer:
            for _ in range(count):
                writer.write(stripes())
    assert "already holds 3 frames" in caplog.text


@pytest.mark.parametrize(
    "picture",
    [
        np.arange(12 * 9 * 4, dtype=np.uint8).reshape(12, 9, 4),
        np.arange(12 * 9, dtype=np.uint8).reshape(12, 9),
        np.arange(12 * 9, dtype=np.uint16).reshape(12, 9) * 500,
    ],
    ids=["with alpha", "grey", "16 bit"],
)
def test_a_png_holds_one_picture_of_any_kind(picture: Any, tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "one.PNG") as writer:
        writer.write(picture)
        with pytest.raises(SettingsError, match="one picture"):
            writer.write(picture)
    np.testing.assert_array_equal(iio.imread(tmp_path / "one.PNG"), picture)


def test_a_jpeg_holds_one_picture_of_8_bits(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "one.jpg") as writer:
        with pytest.raises(ValueError, match="expected uint8"):
            writer.write(np.zeros((4, 4), np.uint16))
        writer.write(np.full((16, 16, 3), 90, np.uint8))
    back = iio.imread(tmp_path / "one.jpg")
    assert back.shape == (16, 16, 3)
    assert abs(back.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("name", ["film.mp4", "one.png", "folder"])
def test_frames_of_another_type_are_refused(name: str, tmp_path: Path) -> None:
    with FrameWriter(tmp_path / name) as writer:
        for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match=r"expected uint8\[h, w, 3\]"):
                writer.write(wrong)
    if name == "film.mp4":
        with FrameWriter(tmp_path / name) as writer, pytest.raises(ValueError, match="expected uint8"):
            writer.write(np.zeros((4, 4, 4), np.uint8))


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "film.mp4") as writer:
        writer.write(stripes())
        with pytest.raises(ValueError, match="as the first"):
            writer.write(stripes(50))


def test_an_interrupted_film_leaves_the_older_one_in_place(tmp_path: Path) -> None:
    output = tmp_path / "film.mp4"
    with FrameWriter(output) as writer:
        writer.write(stripes())
    before = output.read_bytes()

    def interrupted() -> None:
        with FrameWriter(output) as writer:
            for _ in range(100):
                writer.write(stripes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()  # the encoder that was dropped must not complain either
    assert output.read_bytes() == before
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_a_film_without_frames_leaves_nothing(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "film.mp4"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "room"), [("film.mp4", 0), ("film.mp4", 50_000), ("one.png", 0), ("folder", 0)])
def test_a_full_disk_is_told_as_such_and_leaves_no_rest(
    name: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def fill(file: object, data: Any) -> None:
        nonlocal written
        written += len(data)
        if written > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video._PartialFile, "_store", fill)
    rng = np.random.default_rng(0)

    def render() -> None:
        with FrameWriter(tmp_path / name) as writer:
            for _ in range(60):
                writer.write(rng.integers(0, 256, size=(64, 96, 3), dtype=np.uint8))
                if name == "one.png":
                    break

    with pytest.raises(StorageFullError, match=f"{name}: expected room on the disk"):
        render()
    gc.collect()
    assert written > room
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_outputs_that_cannot_be_made_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder.mp4").mkdir()
    for name, message in (("file", "got a file"), ("file/film.mp4", "got a file"), ("folder.mp4", "got a folder")):
        with pytest.raises(SettingsError, match=message):
            FrameWriter(tmp_path / name)
    for name in ("n" * 300 + ".png", "film.gif"):
        with pytest.raises(SettingsError, match="expected a"):
            FrameWriter(tmp_path / name)
    for fps in (0.0, float("nan"), 1e9):
        with pytest.raises(SettingsError, match="frames per second"):
            FrameWriter(tmp_path / "film.mp4", fps=fps)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_colours_round_clip_and_survive_nonsense() -> None:
    image = np.array([[0.0, 1.0, 0.5, -3.0, 7.0, np.nan, np.inf, -np.inf, 1 / 255]], dtype=np.float32)
    assert to_uint8(image).tolist() == [[0, 255, 128, 0, 255, 0, 255, 0, 1]]


def brightness(image: UInt8) -> Any:
    return image.astype(np.float64) @ [0.2126, 0.7152, 0.0722]


def test_depth_is_darker_the_farther_and_black_where_nothing_is() -> None:
    depth = np.geomspace(1.0, 1000.0, 64, dtype=np.float32).reshape(1, 64)
    image = depth_to_image(depth, near=1.0, far=1000.0)
    assert image.shape == (1, 64, 3)
    assert (np.diff(brightness(image)[0]) < 0).all()
    nothing = np.array([[np.inf, np.nan, 0.0, -1.0, 5.0]], dtype=np.float32)
    assert (depth_to_image(nothing)[0, :4] == 0).all()
    assert (depth_to_image(nothing)[0, 4] > 0).any()
    assert (depth_to_image(nothing[:, :4]) == 0).all()
    np.testing.assert_array_equal(depth_to_image(depth, 1.0, 1000.0), depth_to_image(depth * 7, 7.0, 7000.0))


def test_depth_scale_of_one_picture_ignores_outliers() -> None:
    depth = np.full((50, 50), 10.0, dtype=np.float32)
    depth[:25] = 20.0
    plain = depth_to_image(depth)
    depth[0, 0] = 1e6
    assert np.abs(plain.astype(int) - depth_to_image(depth))[1:].max() < 3


def test_levels_have_distinct_colours_that_blend() -> None:
    levels = np.arange(10, dtype=np.float32).reshape(1, 10)
    image = level_heat_map(levels, deepest=9)
    colours = image[0].astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert distance[~np.eye(10, dtype=bool)].min() > 60
    between = level_heat_map(levels[:, :-1] + 0.5, deepest=9)[0].astype(int)
    np.testing.assert_allclose(between, (colours[:-1] + colours[1:]) / 2, atol=1)
    assert (level_heat_map(np.full((2, 2), np.nan, dtype=np.float32), 4) == 0).all()
    assert (level_heat_map(np.zeros((2, 2), dtype=np.float32), 0) == colours[0]).all()
