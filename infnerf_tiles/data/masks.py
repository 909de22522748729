"""Which mask belongs to which photo."""

import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath

from infnerf_tiles.data.names import find_file, name_problem, parent_folders
from infnerf_tiles.data.records import Listing

logger = logging.getLogger(__name__)

DYNAMIC_MASK = "dynamic_mask_"
"""instant-ngp's masks begin so and lie beside their photos: what is not black is left out."""
_FOLDERS = ("masks", "mask")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".PNG")
_NUM_SHOWN = 3


def find_masks(folder: Path, listing: Listing, *, tell: bool = True) -> list[Path | None]:
    """The mask file of every photo, None for none: the one that the pose file names, else by its name.

    By name: masks/NAME.jpg.png, masks/NAME.png, masks/NAME.jpg; the folder may be called mask too, and belongs to the
    data set or lies beside the photos' folder (masks_4 beside images_4). Else instant-ngp's dynamic_mask_NAME.png
    beside the photo. tell: warn of files in masks that belong to no photo, and if only some photos have a mask.
    """
    folders = _mask_folders(folder, listing)
    files = {path: _files_below(path) for path in folders}
    dynamic = _dynamic_masks(listing)
    # names of transforms.json begin with the photo folder, masks usually do not repeat it
    prefixes = ["", *accumulate(f"{part}/" for part in parent_folders(map(_plain, listing.names)))]
    masks: list[Path | None] = []
    for name, mask_name in zip(listing.names, listing.mask_names, strict=True):
        if mask_name is not None:
            masks.append(_named(folder, mask_name, prefixes))
        elif name_problem(name):
            masks.append(None)
        else:
            forms = list(_forms(_plain(name), prefixes)) if files else []
            own = (found[form] for found in files.values() for form in forms if form in found)
            masks.append(next(own, None) or dynamic.get(str(listing.photos.place(_plain(name)).with_suffix(""))))
    if tell:
        _tell(files, listing, masks)
    return masks


def leaves_out(mask: Path, photo: Path) -> bool:
    """Whether what is not black in a mask is left out (instant-ngp), not used."""
    return mask.parent == photo.parent and mask.stem == f"{DYNAMIC_MASK}{photo.stem}"


def _mask_folders(folder: Path, listing: Listing) -> list[Path]:
    photos = listing.photos.path
    beside = [photos.parent / f"{name}{photos.name.removeprefix('images')}" for name in _FOLDERS]
    if not photos.name.startswith("images_"):
        beside = []
    usual = [place / name for place in (folder, photos.parent) for name in _FOLDERS]
    return [path for path in dict.fromkeys((*beside, *usual)) if path.is_dir()]


def _files_below(folder: Path) -> dict[str, Path]:
    """Picture files by their name relative to `folder`."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if name.endswith(_SUFFIXES):
                path = Path(place) / name
                found[_plain(path.relative_to(folder).as_posix())] = path
    return found


def _forms(name: str, prefixes: Sequence[str]) -> Iterator[str]:
    """Names that a photo's mask may have, the likelier ones first."""
    for stem in dict.fromkeys(name.removeprefix(prefix) for prefix in prefixes):
        yield f"{stem}.png"
        for suffix in _SUFFIXES:
            yield PurePosixPath(stem).with_suffix(suffix).as_posix()


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _named(folder: Path, mask_name: str, prefixes: Sequence[str]) -> Path | None:
    if name_problem(mask_name):
        return None
    # paths written elsewhere: what the photos' paths begin with goes here too
    forms = dict.fromkeys(mask_name.removeprefix(prefix) for prefix in prefixes)
    return next((path for form in forms if (path := find_file(folder, form)) is not None), None)


def _dynamic_masks(listing: Listing) -> Mapping[str, Path]:
    """instant-ngp's masks by the path of their photo without its extension."""
    folders = {listing.photos.place(_plain(name)).parent for name in listing.names if not name_problem(name)}
    masks = (path for folder in sorted(folders) for path in sorted(folder.glob(f"{DYNAMIC_MASK}*.png")))
    return {str(path.with_name(path.stem.removeprefix(DYNAMIC_MASK))): path for path in masks}


def _tell(files: Mapping[Path, Mapping[str, Path]], listing: Listing, masks: list[Path | None]) -> None:
    used = {path for path in masks if path is not None}
    for folder, found in files.items():
        if unused := sorted(path for path in found.values() if path not in used):
            logger.warning(
                "%s: %d of %d files belong to no photo and are not used (%s): a photo NAME.jpg has the mask "
                "NAME.jpg.png, NAME.png or NAME.jpg",
                folder, len(unused), len(found), ", ".join(path.name for path in unused[:_NUM_SHOWN]),
            )  # fmt: skip
    if used and (bare := [name for name, path in zip(listing.names, masks, strict=True) if path is None]):
        logger.warning(
            "%s: %d of %d photos have a mask; the others are used as a whole (%s)",
            listing.source, len(masks) - len(bare), len(masks), ", ".join(bare[:_NUM_SHOWN]),
        )  # fmt: skip
