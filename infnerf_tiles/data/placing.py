"""Where the photos that a pose file names lie."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from infnerf_tiles.data.names import MISSING_PHOTO, name_problem, parent_folders, shared_folder
from infnerf_tiles.data.records import PhotoFolder

logger = logging.getLogger(__name__)

# Blender's files name photos without extension
EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".tif", ".tiff")
_INPUT = "input"  # where 3D Gaussian splatting's scripts begin
_NUM_TRIED = 32


def photo_folder(data: Path, images: Path | None) -> Path | None:
    """The folder of photos that somebody named: seen from where he is or, if there is none, from the data set."""
    if images is None or images.is_dir():
        return images
    below = (data.parent if data.is_file() else data) / images
    return below if below.is_dir() else images


def place_model_photos(folder: Path, images: Path | None, names: Sequence[str]) -> PhotoFolder:
    """Where the photos of a COLMAP model are: below `images` or, if that is None, in the data set's folder.

    There in images, else the largest of images_2, images_4, ..., else the folder itself, else input. The first that
    holds photos; images if none does.
    """
    prefixes = _prefixes(names)
    if images is not None:
        places = (PhotoFolder(path=images, prefix=prefix) for prefix in prefixes)
        return _first(names, places) or PhotoFolder(path=images)
    usual = folder / "images"
    sized = [usual, *_sized(folder)]
    flat = (PhotoFolder(path=path) for path in (*sized, folder, folder / _INPUT))
    shorter = (PhotoFolder(path=path, prefix=prefix) for path in sized for prefix in prefixes[1:])
    found = _first(names, (*flat, *shorter)) or PhotoFolder(path=usual)
    _tell(folder, usual, found)
    return found


def place_frame_photos(folder: Path, images: Path | None, names: Sequence[str]) -> PhotoFolder:
    """Where the photos of a transforms file are, whose names are relative to `folder` and mostly begin with images/.

    images: the folder that takes the place of that one. Without it also below `folder` as the ends of the names say,
    and in images, images_2, ... as with a COLMAP model.
    """
    prefixes = _prefixes(names)
    if images is not None:
        found = _first(names, (PhotoFolder(path=images, prefix=prefix) for prefix in prefixes))
        if found is None:
            prefix = shared_folder(names)
            found = PhotoFolder(path=images, prefix="" if prefix and (images / prefix).is_dir() else prefix)
        return found
    ends = (PhotoFolder(path=folder, prefix=prefix) for prefix in prefixes)
    sized = (PhotoFolder(path=path, prefix=prefixes[-1]) for path in (folder / "images", *_sized(folder)))
    found = _first(names, (*ends, *sized)) or PhotoFolder(path=folder)
    if found.path != folder or found.prefix:
        _tell(folder, folder / prefixes[-1], found)
    return found


def missing_photo(photos: PhotoFolder, name: str) -> str:
    """What to say of a photo that is not there: where it was looked for, and a file that may be meant."""
    path = photos.place(name)
    stem = _key(path)
    other = next((file for file in _neighbours(path) if _key(Path(file)) == stem and file != path.name), None)
    return f"{MISSING_PHOTO}: {path}" + (f"; there is {other}" if other else "")


def _prefixes(names: Iterable[str]) -> list[str]:
    """ "", and the folders that all names begin with, one more each time."""
    return ["", *accumulate(f"{folder}/" for folder in parent_folders(names))]


def _sized(folder: Path) -> list[Path]:
    """images_2, images_4, ...: the largest photos first."""
    found = {int(path.name[7:]): path for path in folder.glob("images_*") if path.name[7:].isdecimal()}
    return [found[factor] for factor in sorted(found)]


def _first(names: Sequence[str], places: Iterable[PhotoFolder]) -> PhotoFolder | None:
    """The first place that holds one of some of the photos."""
    usable = [name for name in names[:: max(1, len(names) // _NUM_TRIED)] if name_problem(name) is None]
    return next((place for place in places if any(_holds(place, name) for name in usable)), None)


def _holds(place: PhotoFolder, name: str) -> bool:
    return any(place.find(name + extension) is not None for extension in _endings(name))


def _endings(name: str) -> Iterator[str]:
    yield ""
    if "." not in name.rpartition("/")[2]:
        yield from EXTENSIONS


def _tell(folder: Path, usual: Path, found: PhotoFolder) -> None:
    if found.path != usual:
        below = f" without {found.prefix}" if found.prefix else ""
        logger.warning("%s: no photos in %s, they are read from %s%s", folder, usual, found.path, below)


def _key(path: Path) -> str:
    return path.stem.casefold()


def _neighbours(path: Path) -> tuple[str, ...]:
    try:
        return _files(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=16)  # many photos are missing at once, and mostly from one folder
def _files(folder: Path, mtime_ns: int) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in folder.iterdir()))
