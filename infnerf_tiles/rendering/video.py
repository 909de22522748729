"""Frames to files: an H.264 film, one picture or a folder of numbered PNGs; and pictures of depth and level.

What stands at the output's name is always whole: everything is written under another name first, in the same folder,
and renamed when it is complete.
"""

import contextlib
import errno
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import imageio.v3 as iio
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from infnerf_tiles.arrays import AnyArray, Float32, UInt8, check_shape
from infnerf_tiles.errors import SettingsError, StorageFullError
from infnerf_tiles.outputs import check_file, check_folder

Kind = Literal["film", "picture", "folder"]
PARTIAL_SUFFIX = ".partial"
_KINDS: Mapping[str, Kind] = {".mp4": "film", ".png": "picture", ".jpg": "picture", ".jpeg": "picture"}
_JPEG_QUALITY = 95  # beyond that files grow faster than one sees
_FRAME_NAME = re.compile(r"frame_\d{6}\.png")
_FULL = (errno.ENOSPC, errno.EDQUOT)

# From near to far, or fine to coarse: light to dark, so that the order survives a grey print.
_DEPTH_COLOURS = ("#fff7cf", "#fdc94c", "#ee7b3c", "#c03a58", "#7a2d78", "#39286b", "#14123a")
# Level 0 upwards; neighbours differ in hue, so that the edge of a level is seen at a glance.
_LEVEL_COLOURS = (
    "#30123b",
    "#3f5fd0",
    "#1fb1e0",
    "#2fd58e",
    "#a4e43a",
    "#f6c12c",
    "#f4742a",
    "#c42503",
    "#ff9ec4",
    "#ffffff",
)

log = logging.getLogger(__name__)


def kind_of(output: Path) -> Kind:
    """What an output's name stands for: .mp4 is a film; .png, .jpg or .jpeg one picture; no suffix, or a folder that is
    there already, a folder of numbered PNGs. SettingsError for another suffix."""
    suffix = output.suffix.lower()
    if suffix in _KINDS:
        return _KINDS[suffix]
    if suffix and not os.path.isdir(output):
        raise SettingsError(
            f"{output}: expected a name in {', '.join(_KINDS)}, or one without a suffix for a folder of PNGs, got "
            f"{output.suffix}; a folder with a dot in its name has to be there already"
        )
    return "folder"


class FrameWriter:
    """Writes frames to `output`, which is what `kind_of` says.

    Use as a context manager: an exception inside leaves no half-written film behind (frames already in a folder stay).
    Raises SettingsError where the output cannot be made or is one picture and gets a second, StorageFullError when the
    disk is full.
    """

    def __init__(self, output: str | Path, *, fps: float = 30.0, first: int = 0, kind: Kind | None = None) -> None:
        """first: number of the first frame that is written to a folder; those before are there already. kind: instead
        of what the name says."""
        self.output = Path(output)
        self.num_frames = first
        self._fps = fps
        self._shape: tuple[int, ...] | None = None
        self._film: _Film | None = None
        self._kind = kind or kind_of(self.output)
        if first and self._kind != "folder":
            raise ValueError(f"{self.output}: only a folder of frames can be continued")
        if not 0.1 <= fps <= 1000:
            raise SettingsError(f"{self.output}: expected 0.1 to 1000 frames per second, got {fps:g}")
        self._prepare()

    def write(self, frame: AnyArray) -> None:
        """Append a frame: uint8[h, w, 3], sRGB; a PNG also takes uint8[h, w, 4] and grey uint8 or uint16[h, w], a JPEG
        grey uint8[h, w].

        ValueError for another dtype or shape, or one unlike the first frame's.
        """
        self._check(frame)
        with _full_disk_told(self.output):
            if self._kind == "film":
                self._film = self._film or _Film(_partial(self.output), self._fps, *frame.shape[:2])
                self._film.write(frame)
            elif self._kind == "picture":
                _write_picture(self.output, frame)
            else:
                _write_picture(self.output / frame_name(self.num_frames, ".png"), frame)
        self.num_frames += 1

    def close(self) -> None:
        """Complete the output and put it in place; a film without a frame leaves nothing."""
        film, self._film = self._film, None
        if film is not None:
            with _full_disk_told(self.output):
                film.close()
                os.replace(film.path, self.output)

    def abort(self) -> None:
        """Drop a film that is not complete."""
        film, self._film = self._film, None
        if film is not None:
            film.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise

    def _prepare(self) -> None:
        """Make the folders now: better before the first frame is rendered than after."""
        if self._kind != "folder":
            check_file(self.output)
            return
        check_folder(self.output)
        old = sum(1 for path in self.output.iterdir() if _FRAME_NAME.fullmatch(path.name))
        if old > self.num_frames:
            log.warning("%s already holds %d frames; those past the last new one will stay", self.output, old)

    def _check(self, frame: AnyArray) -> None:
        if self._kind == "picture" and self.num_frames:
            raise SettingsError(f"{self.output}: expected one picture, got more; name an .mp4 or a folder for many")
        is_film, is_jpeg = self._kind == "film", self._kind == "picture" and self.output.suffix.lower() != ".png"
        colour = (
            frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] in ((3,) if is_film or is_jpeg else (3, 4))
        )
        grey = frame.dtype in ((np.uint8,) if is_jpeg else (np.uint8, np.uint16)) and frame.ndim == 2 and not is_film
        if not (colour or grey) or frame.size == 0:
            raise ValueError(f"frame for {self.output}: expected uint8[h, w, 3], got {frame.dtype}{list(frame.shape)}")
        if self._shape not in (None, frame.shape):
            raise ValueError(f"frame for {self.output}: expected shape {self._shape} as the first, got {frame.shape}")
        self._shape = frame.shape


def frame_name(number: int, suffix: str) -> str:
    """Name of a frame in a folder: "frame_000012.png"."""
    return f"frame_{number:06d}{suffix}"


def write_floats(path: Path, values: Float32) -> None:
    """Write float32[h, w] as .npy or .tiff (one channel, 32-bit float), whole or not at all.

    inf and NaN stay what they are. StorageFullError when the disk is full.
    """
    check_shape("values", values, (None, None))
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, np.ascontiguousarray(values, np.float32), allow_pickle=False)
    else:
        Image.fromarray(np.ascontiguousarray(values, np.float32)).save(buffer, format="TIFF")
    with _full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, buffer.getvalue())


class _PartialFile(io.FileIO):
    """A file that keeps its first error for later: the encoder, which cannot go on after one, then never meets it."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._store(data)
            except OSError as error:
                self.error = error
        return len(data)

    def _store(self, data: Any) -> None:
        rest = memoryview(data)
        while rest:  # a disk that is nearly full takes a part without an error
            rest = rest[super().write(rest) :]

    def check(self) -> None:
        """Raise the error that has been kept."""
        if self.error is not None:
            raise self.error


class _Film:
    """An H.264 film in the making; 4:2:0 colour by BT.709, tagged as such, which every player shows as it was meant."""

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self.path = path
        self._file = _PartialFile(path, "wb")
        try:
            self._container = av.open(self._file, mode="w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(65535))
            self._stream.options = {"crf": "18"}  # hardly told from the frames by eye
            self._stream.pix_fmt = "yuv420p"
            # 4:2:0 needs even sides.
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            context = self._stream.codec_context
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
        except BaseException:
            self.discard()
            raise

    def write(self, image: UInt8) -> None:
        height, width = image.shape[:2]
        # Repeating the last row or column is the least visible way to even sides.
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._mux(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG))

    def close(self) -> None:
        self._mux(None)
        self._container.close()
        self._file.check()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self._file.check()


def to_uint8(image: Float32) -> UInt8:
    """Colours or greys in [0, 1] as uint8, rounded; values outside are clipped, NaN is 0."""
    scaled = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=1.0, neginf=0.0) * 255.0
    rounded: UInt8 = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return rounded


def depth_to_image(depth: Float32, near: float | None = None, far: float | None = None) -> UInt8:
    """Depth as colour, uint8[h, w, 3]: near is light, far is dark, on a logarithmic scale; nothing there is black.

    `depth`: float32[h, w], world units; 0, inf and NaN mean nothing there. `near` and `far` (default: the 1st and the
    99th percentile of this picture) are the ends of the scale; give them for a film, or its colours will flicker.
    """
    check_shape("depth", depth, (None, None))
    seen = np.isfinite(depth) & (depth > 0)
    if not seen.any():
        return np.zeros((*depth.shape, 3), dtype=np.uint8)
    low, high = np.percentile(depth[seen], (1, 99))
    low, high = near or float(low), far or float(high)
    span = max(np.log(high / low), 1e-6)
    position = np.log(np.where(seen, depth, low) / low) / span
    return np.where(seen[:, :, None], _colours(position, _DEPTH_COLOURS), np.uint8(0))


def level_heat_map(levels: Float32, deepest: int) -> UInt8:
    """Drawn level as colour, uint8[h, w, 3], from dark violet (level 0) to white (`deepest`), blended between levels.

    `levels`: float32[h, w], fractional where two levels are blended, NaN where nothing is drawn (black). Give the
    scene's deepest level as `deepest`, so that pictures of one scene compare.
    """
    check_shape("levels", levels, (None, None))
    seen = np.isfinite(levels)
    position = np.where(seen, levels, 0.0) / max(deepest, 1)
    return np.where(seen[:, :, None], _colours(position, _LEVEL_COLOURS), np.uint8(0))


def _colours(position: AnyArray, scale: tuple[str, ...]) -> UInt8:
    """uint8[h, w, 3] from float[h, w] positions on a colour scale, [0, 1], clipped."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in scale], dtype=np.float32)
    places = np.linspace(0.0, 1.0, len(scale))
    channels = [np.interp(position, places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def _write_picture(path: Path, image: NDArray[Any]) -> None:
    suffix = path.suffix.lower()
    options: dict[str, Any] = {} if suffix == ".png" else {"quality": _JPEG_QUALITY}
    _write_whole(path, iio.imwrite("<bytes>", image, extension=suffix, plugin="pillow", **options))


def _write_whole(path: Path, data: bytes) -> None:
    partial = _partial(path)
    try:
        with _PartialFile(partial, "wb") as file:
            file.write(data)
            file.check()
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def _full_disk_told(output: Path) -> Iterator[None]:
    """Turn the errors of a full disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(
            f"{output}: expected room on the disk, got: {error.strerror}; free some space or write to another disk"
        ) from error
