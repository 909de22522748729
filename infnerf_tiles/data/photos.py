"""Photos in memory: decoding, reduction and a cache that stays within its byte budget."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from infnerf_tiles.data.codecs import DecodedPhoto, check_photo, decode_mask, decode_photo, photo_size
from infnerf_tiles.data.marks import check_digest
from infnerf_tiles.data.masks import leaves_out
from infnerf_tiles.data.pyramid import mask_pyramid, num_pyramid_levels, pyramid, reduce_box, reduce_mask
from infnerf_tiles.errors import DamagedPhotoError, PhotoError

__all__ = [
    "DecodedPhoto",
    "PhotoCache",
    "PhotoFile",
    "check_photo",
    "decode_mask",
    "decode_masked_photo",
    "decode_photo",
    "mask_pyramid",
    "num_pyramid_levels",
    "photo_size",
    "pyramid",
    "reduce_box",
    "reduce_mask",
]


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """Where a photo's pixels come from and how they are to be read.

    size: expected (width, height) after the reduction, None for any. alpha_as_mask: whether pixels that are not opaque
    are masked; otherwise they are white background like any other colour. digest: `photo_digest` of both files, None
    for any.
    """

    path: Path
    mask_path: Path | None = None
    downscale: int = 1
    size: tuple[int, int] | None = None
    alpha_as_mask: bool = False
    digest: bytes | None = None


def decode_masked_photo(file: PhotoFile) -> DecodedPhoto:
    """Pixels and the combined mask of a photo; mask None when every pixel is usable.

    PhotoError if a file is unreadable, the files are not the expected ones, or the photo's or the mask's size is not;
    of these, DamagedPhotoError for what the expected files themselves contain.
    """
    if file.digest is not None:
        # the decoder finds the file in the system's cache then: a hundredth of what decoding takes
        check_digest(file.path, file.mask_path, file.digest)
    photo = decode_photo(file.path, file.downscale)
    height, width = photo.rgb.shape[:2]
    if file.size is not None and (width, height) != file.size:
        raise PhotoError(
            f"{file.path}: expected {file.size[0]}x{file.size[1]} at 1/{file.downscale} size, got {width}x{height}; "
            "the photo was changed after the scene was built, restore it"
        )
    mask = photo.mask if file.alpha_as_mask else None
    if file.mask_path is not None:
        usable = decode_mask(file.mask_path, file.downscale, inverted=leaves_out(file.mask_path, file.path))
        if usable.shape != (height, width):
            raise DamagedPhotoError(
                f"{file.mask_path}: expected a mask of {width}x{height} like its photo at 1/{file.downscale} size, "
                f"got {usable.shape[1]}x{usable.shape[0]}; export the mask at the photo's size"
            )
        mask = usable if mask is None else mask & usable
    if mask is not None and mask.all():
        mask = None
    return DecodedPhoto(rgb=photo.rgb, mask=mask)


class PhotoCache:
    """Decoded photos (pyramid level 0, with masks), least recently used out first, never more than `byte_budget` bytes.

    Safe to use from several threads; a photo that two threads ask for at once is decoded once. The arrays are shared:
    do not write to them.
    """

    def __init__(self, byte_budget: int) -> None:
        if byte_budget < 0:
            raise ValueError(f"photo cache: expected a budget of 0 bytes or more, got {byte_budget}")
        self.byte_budget = byte_budget
        self.num_hits = 0
        self.num_misses = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[PhotoFile, DecodedPhoto] = OrderedDict()
        self._running: dict[PhotoFile, Future[DecodedPhoto]] = {}
        self._total = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._total

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, file: object) -> bool:
        return file in self._entries

    def get(self, file: PhotoFile) -> DecodedPhoto:
        """The decoded photo. One that is larger than the whole budget is decoded and not kept. PhotoError as above."""
        with self._lock:
            found = self._entries.get(file)
            if found is not None:
                self._entries.move_to_end(file)
                self.num_hits += 1
                return found
            self.num_misses += 1
            running = self._running.get(file)
            if running is None:
                mine: Future[DecodedPhoto] = Future()
                self._running[file] = mine
        if running is not None:
            return running.result()
        try:
            photo = decode_masked_photo(file)
        except BaseException as error:
            with self._lock:
                del self._running[file]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._running[file]
            self._keep(file, photo)
        mine.set_result(photo)
        return photo

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._total = 0

    def _keep(self, file: PhotoFile, photo: DecodedPhoto) -> None:
        """The one place that adds or evicts entries; called with the lock held."""
        if photo.num_bytes > self.byte_budget:
            return
        while self._total + photo.num_bytes > self.byte_budget:
            _, oldest = self._entries.popitem(last=False)
            self._total -= oldest.num_bytes
        self._entries[file] = photo
        self._total += photo.num_bytes
