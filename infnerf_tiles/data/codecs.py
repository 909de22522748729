"""Decoding of photo and mask files: JPEG through libjpeg-turbo, everything else through Pillow.

Pixels come out as they are stored: EXIF orientation is never applied, because poses are for stored pixels.
"""

import contextlib
import logging
import mmap
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from infnerf_tiles.arrays import AnyArray, Bool, UInt8
from infnerf_tiles.data.file_kinds import HEAD_BYTES, foreign_kind
from infnerf_tiles.data.pyramid import reduce_box, reduce_mask
from infnerf_tiles.errors import DamagedPhotoError, PhotoError

logger = logging.getLogger(__name__)

MAX_PIXELS = 1 << 30  # 3 GiB decoded; a header that claims more is taken for damage

# Only these: other decoders of Pillow may start programs (PostScript) or are not for photos.
_FORMATS = ("PNG", "TIFF", "WEBP", "BMP", "JPEG")
_UNLIMITED_PIXELS = 1 << 26  # below Pillow's own limit on image sizes
_JPEG_START = b"\xff\xd8\xff"
_JPEG_WHITE = 128
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
# libjpeg warns about these on files whose picture is whole; everything else it warns about has lost pixels.
_HARMLESS_JPEG_WARNINGS = (
    "extraneous bytes",
    "Invalid SOS parameters",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
    "Inconsistent progression sequence",
)
_DEEP_MODES = {"I": "int32", "F": "float32"}  # Pillow's, and what they hold
_NO_MEMORY = "nsufficient memory"  # libjpeg's words
_TIFF_EXTENTS = ((273, 279), (324, 325))  # strip and tile offsets with their byte counts

_limit_lock = threading.Lock()

_ORIENTATION = 274
# Pillow turns TIFF (and only TIFF) by this tag when it loads; these undo it.
_TURN_BACK: dict[int, Callable[[AnyArray], AnyArray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedPhoto:
    """A photo in memory.

    rgb: uint8[h, w, 3], sRGB; a transparent photo is composited over white. mask: bool[h, w], True = use, or None when
    every pixel is usable.
    """

    rgb: UInt8
    mask: Bool | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held by the pixels and the mask."""
        return self.rgb.nbytes + (0 if self.mask is None else self.mask.nbytes)


def photo_size(path: Path) -> tuple[int, int]:
    """(width, height) of the stored pixels, from the header alone. PhotoError if there is none."""
    return _size_of(path, check_whole=False)


def check_photo(path: Path) -> tuple[int, int]:
    """(width, height) of a photo that is all there; PhotoError otherwise.

    Looks at the header and at how the file ends; decodes only when the end is not conclusive.
    """
    return _size_of(path, check_whole=True)


def decode_photo(path: Path, downscale: int = 1) -> DecodedPhoto:
    """The photo box-filtered by an integer factor.

    Grey is repeated, 16-bit keeps its high byte, CMYK is converted, alpha is composited over white; `mask` then marks
    the pixels that were fully opaque. DamagedPhotoError if the file is truncated or damaged, PhotoError if it is
    missing or smaller than `downscale`.
    """
    pixels = _decode(path)
    _check_factor(path, pixels, downscale)
    if pixels.shape[2] == 3:
        return DecodedPhoto(rgb=_reduced(pixels, downscale))
    alpha = pixels[:, :, 3]
    opaque = alpha == 255
    if opaque.all():
        return DecodedPhoto(rgb=_reduced(np.ascontiguousarray(pixels[:, :, :3]), downscale))
    weight = alpha[:, :, None].astype(np.uint32)
    rgb = ((pixels[:, :, :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    return DecodedPhoto(rgb=_reduced(rgb, downscale), mask=reduce_mask(opaque, downscale))


def decode_mask(path: Path, downscale: int = 1, *, inverted: bool = False) -> Bool:
    """bool[h, w], True where the mask is nonzero (any colour channel, and alpha if it has one).

    A JPEG, which has rings around edges, counts as nonzero from 128 on. inverted: True where it is zero. A reduced
    pixel is usable only if all pixels under it are. PhotoError as in `decode_photo`.
    """
    image = _load(path)
    _check_factor(path, image, downscale)
    white = image >= _JPEG_WHITE if _is_jpeg(path) else image != 0
    if image.ndim == 2:
        usable = white
    else:
        num_colours = image.shape[2] - (1 - image.shape[2] % 2)  # LA and RGBA end with alpha
        usable = white[:, :, :num_colours].any(axis=2)
        if num_colours < image.shape[2]:
            usable &= white[:, :, num_colours]
    if inverted:
        usable = np.logical_not(usable)
    return reduce_mask(np.ascontiguousarray(usable), downscale)


def _is_jpeg(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_JPEG_START)) == _JPEG_START
    except OSError as error:
        raise _unreadable(path, error) from error


def _reduced(rgb: UInt8, downscale: int) -> UInt8:
    return rgb if downscale == 1 else reduce_box(rgb, downscale)


def _check_factor(path: Path, image: AnyArray, downscale: int) -> None:
    height, width = image.shape[:2]
    if not 1 <= downscale <= min(height, width):
        raise PhotoError(
            f"{path}: expected a reduction by 1 to {min(height, width)} for {width}x{height} pixels, got {downscale}; "
            "lower data.downscale"
        )


def _decode(path: Path) -> UInt8:
    """uint8[h, w, 3 or 4]."""
    image = _load(path)
    if image.dtype == np.uint16:  # as libpng and libtiff do it for colour, so that all 16-bit files come out alike
        image = (image >> 8).astype(np.uint8)
    elif image.dtype == np.bool_:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype != np.uint8:
        raise _too_deep(path, str(image.dtype))
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] == 2:
        return np.ascontiguousarray(image[:, :, [0, 0, 0, 1]])
    return image


def _load(path: Path) -> AnyArray:
    """[h, w] or [h, w, 2 to 4] as stored: L, LA, RGB or RGBA; uint8, uint16, bool or what Pillow made of it."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            data = head + file.read() if head.startswith(_JPEG_START) else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_kind(path, head)
    try:
        return _load_jpeg(path, data) if data else _load_other(path)
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise _failure(path, error) from error


def _load_jpeg(path: Path, data: bytes) -> UInt8:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # sampling or precision that the fast decoder does not know
        return _load_other(path)
    _check_pixels(path, width, height)
    colourspace = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
    try:
        pixels: UInt8 = simplejpeg.decode_jpeg(data, colorspace=colourspace)
    except ValueError as error:
        if _NO_MEMORY in str(error):
            raise MemoryError(f"{path}: {error}") from error
        # Only the first warning is reported, so a harmless one may hide that the file stops short.
        if not any(text in str(error) for text in _HARMLESS_JPEG_WARNINGS) or not _ends_with_eoi(data):
            raise _damaged(path, error) from error
        logger.warning("%s: decoded, although libjpeg says: %s", path, error)
        pixels = simplejpeg.decode_jpeg(data, colorspace=colourspace, strict=False)
    if colourspace == "CMYK":  # stored inverted, by Adobe's convention
        black = pixels[:, :, 3:].astype(np.uint16)
        pixels = ((pixels[:, :, :3] * black + 127) // 255).astype(np.uint8)
    return pixels


def _load_other(path: Path) -> AnyArray:
    with _open(path) as image:
        width, height = _stored_size(image)
        _check_pixels(path, width, height)
        turned = image.getexif().get(_ORIENTATION, 1) if isinstance(image, TiffImageFile) else 1
        # Pillow looks at its limit for TIFF a second time, when it loads the pixels.
        guard = _lifted_limit() if width * height > _UNLIMITED_PIXELS else contextlib.nullcontext()
        with guard:
            image.load()
        pixels = np.asarray(_in_known_mode(image))
    pixels = _TURN_BACK.get(turned, np.asarray)(pixels)
    if pixels.shape[:2] != (height, width):
        raise DamagedPhotoError(f"{path}: expected {width}x{height} pixels by its header, got {pixels.shape[1::-1]}")
    return np.ascontiguousarray(pixels)


def _in_known_mode(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return image
    has_alpha = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
    if image.mode in ("1", "L", "LA", "RGB", "RGBA") and not has_alpha:
        return image
    return image.convert("RGBA" if has_alpha else "RGB")


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) before Pillow turns a TIFF by its orientation."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
    return image.size


@contextlib.contextmanager
def _lifted_limit() -> Iterator[None]:
    """Without Pillow's limit on image sizes: it is process-wide and meant for web servers, aerial cameras exceed it."""
    with _limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(path: Path) -> Image.Image:
    with _lifted_limit():  # only the header is read here
        return Image.open(path, formats=_FORMATS)


def _size_of(path: Path, check_whole: bool) -> tuple[int, int]:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            _check_kind(path, head)
            if head.startswith(_JPEG_START):
                size, is_whole = _inspect_jpeg(path, file.fileno())
            elif head.startswith(_PNG_START):
                size = struct.unpack_from(">II", head, 16)
                file.seek(max(0, path.stat().st_size - len(_PNG_END)))
                is_whole = file.read() == _PNG_END
            else:
                size, is_whole = _inspect_other(path, check_whole)
    except PhotoError:
        raise
    except Exception as error:  # as in _load
        raise _failure(path, error) from error
    width, height = size
    _check_pixels(path, width, height)
    if check_whole and not is_whole:
        _load(path)
    return width, height


def _inspect_jpeg(path: Path, file_number: int) -> tuple[tuple[int, int], bool]:
    """Size, and whether the file certainly has its end."""
    with mmap.mmap(file_number, 0, access=mmap.ACCESS_READ) as data:
        is_whole = _ends_with_eoi(data[-4096:])
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            with _open(path) as image:
                return image.size, False
    return (width, height), is_whole


def _inspect_other(path: Path, is_photo: bool) -> tuple[tuple[int, int], bool]:
    """Size, and whether all pixel data that the header names lie within the file."""
    with _open(path) as image:
        size = _stored_size(image)
        if is_photo and image.mode in _DEEP_MODES:
            raise _too_deep(path, _DEEP_MODES[image.mode])
        if not isinstance(image, TiffImageFile):
            return size, False
        tags = image.tag_v2
        file_size = path.stat().st_size
        for offsets, counts in _TIFF_EXTENTS:
            if offsets in tags and counts in tags:
                ends = [start + count for start, count in zip(tags[offsets], tags[counts], strict=True)]
                if max(ends, default=0) > file_size:
                    raise PhotoError(
                        f"{path}: expected at least {max(ends)} bytes by its header, got {file_size}; "
                        "the file is truncated, copy it again"
                    )
                return size, True
        return size, False


def _ends_with_eoi(data: bytes) -> bool:
    return data.rstrip(b"\0").endswith(_JPEG_END)  # some cameras pad with zeros


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise DamagedPhotoError(
            f"{path}: expected 1 to {MAX_PIXELS} pixels, got {width}x{height}; the header is damaged"
        )


def _check_kind(path: Path, head: bytes) -> None:
    if not head:
        raise DamagedPhotoError(f"{path}: expected a photo, got an empty file; copy it again")
    if (kind := foreign_kind(path, head)) is not None:
        raise DamagedPhotoError(f"{path}: expected a JPEG, PNG, TIFF, WebP or BMP file, got {kind}")


def _too_deep(path: Path, got: str) -> DamagedPhotoError:
    return DamagedPhotoError(f"{path}: expected 8 or 16 bits per channel, got {got}; export it as 8 or 16 bit")


def _unreadable(path: Path, error: OSError) -> PhotoError:
    why = error.strerror or str(error)
    return PhotoError(f"{path}: expected a readable JPEG, PNG, TIFF, WebP or BMP file, got: {why}")


def _failure(path: Path, error: Exception) -> PhotoError:
    """Only an error of the system has a number, Pillow's own ones have none."""
    return _unreadable(path, error) if isinstance(error, OSError) and error.errno is not None else _damaged(path, error)


def _damaged(path: Path, error: Exception) -> DamagedPhotoError:
    return DamagedPhotoError(
        f"{path}: expected a whole JPEG, PNG, TIFF, WebP or BMP file, got a damaged or truncated one ({error}); "
        "copy or export it again"
    )
