"""Reading a data set: which photos can be used, their cameras, their split, and why the others cannot be used."""

import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Bool, Int32, Int64, UInt8, check_shape
from infnerf_tiles.data.checks import camera_problems, clean_poses, file_problem
from infnerf_tiles.data.colmap import MODEL_FOLDERS, find_colmap, read_colmap
from infnerf_tiles.data.georeference import Georeference, read_georeference
from infnerf_tiles.data.names import MISSING_PHOTO, find_file, name_problem, shared_folder
from infnerf_tiles.data.photos import PhotoFile
from infnerf_tiles.data.records import Listing, OwnSplit, Points, Rejected
from infnerf_tiles.data.splits import every_kth, match_names, read_name_list, read_split_file
from infnerf_tiles.data.transforms_json import TRANSFORMS_FILE, find_transforms, read_transforms
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras

__all__ = ["Georeference", "Points", "PosedPhotos", "Rejected", "read_dataset"]

logger = logging.getLogger(__name__)

_MASK_FOLDER = "masks"
_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class PosedPhotos:
    """The usable photos of a data set, in the order of their names.

    root: the data set's folder. names: n relative names with forward slashes. paths, mask_paths: their files, None
    for no mask. cameras: poses (world: the pose file's frame) and intrinsics of the photos reduced by `downscale`.
    is_test: bool[n]. points: tracks refer to rows of `names`; None without sparse points. rejected: every listed
    photo that is not in `names`, with its reason. own_split: whether the data set or a list says what is held out.
    digests: uint8[n, 16] of photos and masks (`data.marks`) as they have to be when they are decoded, None for any.
    """

    root: Path
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    mask_paths: tuple[Path | None, ...]
    cameras: PosedCameras
    is_test: Bool
    points: Points | None
    rejected: tuple[Rejected, ...]
    georeference: Georeference | None
    downscale: int
    own_split: bool = False
    digests: UInt8 | None = None

    def __post_init__(self) -> None:
        check_shape("is_test", self.is_test, (len(self.names),))
        if not len(self.names) == len(self.paths) == len(self.mask_paths) == self.cameras.num_photos:
            raise ValueError(
                f"photos: expected as many paths, mask paths and poses as the {len(self.names)} names, got "
                f"{len(self.paths)}, {len(self.mask_paths)} and {self.cameras.num_photos}"
            )

    @property
    def num_photos(self) -> int:
        """Number of photos n."""
        return len(self.names)

    def select(self, rows: Int64, is_test: Bool) -> "PosedPhotos":
        """The photos of int64[k] `rows`, in that order, with another split (bool[k])."""
        photo_of: Int32 = np.full(self.num_photos, -1, np.int32)
        photo_of[rows] = np.arange(len(rows))
        kept = rows.tolist()
        return replace(
            self,
            names=tuple(self.names[i] for i in kept),
            paths=tuple(self.paths[i] for i in kept),
            mask_paths=tuple(self.mask_paths[i] for i in kept),
            cameras=self.cameras.subset(rows),
            is_test=is_test,
            points=None if self.points is None else self.points.renumbered(photo_of),
            digests=None if self.digests is None else self.digests[rows],
        )

    def photo_file(self, photo: int, *, alpha_as_mask: bool = False) -> PhotoFile:
        """How to decode one photo, for `PhotoCache.get` and `decode_masked_photo`."""
        camera = self.cameras.camera(photo)
        return PhotoFile(
            path=self.paths[photo],
            mask_path=self.mask_paths[photo],
            downscale=self.downscale,
            size=(camera.width, camera.height),
            alpha_as_mask=alpha_as_mask,
            digest=None if self.digests is None else self.digests[photo].tobytes(),
        )


def read_dataset(
    folder: Path,
    *,
    images: Path | None = None,
    downscale: int = 1,
    test_every: int = 8,
    test_list: Path | None = None,
    check_photos: bool = True,
) -> PosedPhotos:
    """Read a COLMAP model (sparse/0, sparse or the folder itself; photos in images/) or transforms.json from `folder`.

    images: where the photos are, if not there. downscale: integer by which photos and cameras are reduced. Test
    photos: those of `test_list`, else of the data set's own split, else every `test_every`-th name (0: none).
    check_photos: open every photo's header and compare it with its camera; without it, photos need not even exist.

    A photo that cannot be used is in `rejected` with its reason. DatasetError if the folder holds no data set, a pose
    file is damaged, or no photo is usable; SettingsError for a wrong `downscale` or `test_every`.
    """
    if downscale < 1:
        raise SettingsError(f"data.downscale: expected an integer of at least 1, got {downscale}")
    every_kth((), test_every)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder with posed photos, got none; check the path")
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images}: expected a folder with the photos, got none; check --images")
    listing = _read_listing(folder, images, check_photos)
    georeference = read_georeference(folder)
    poses, problems = clean_poses(listing.camera_to_world)
    masks = _find_masks(folder, listing)
    _add_problems(problems, listing, masks, downscale, check_photos)

    own_split = read_split_file(folder) or listing.split
    if test_list is None and own_split is not None and own_split.train is not None:
        in_train, _ = match_names(own_split.train, listing.names, own_split.source)
        in_test, _ = match_names(own_split.test, listing.names, own_split.source)
        for i in np.flatnonzero(~(in_train | in_test)):
            problems[i] = problems[i] or f"it is neither a training nor a test photo in {own_split.source}"
    rejected = [*listing.rejected]
    rejected += [Rejected(n, reason) for n, reason in zip(listing.names, problems, strict=True) if reason is not None]
    rows = sorted((i for i, p in enumerate(problems) if p is None), key=lambda i: listing.names[i])
    if not rows:
        raise _nothing_usable(listing, rejected)

    names = tuple(listing.names[i] for i in rows)
    cameras = PosedCameras(
        # an unusable camera has no usable photo left, so what stands in for it goes with `subset`
        cameras=tuple(Camera("SIMPLE_PINHOLE", 1, 1, (1, 0, 0)) if isinstance(c, str) else c for c in listing.cameras),
        camera_index=listing.camera_index[rows],
        camera_to_world=poses[rows],
    ).subset(np.arange(len(rows)))
    photo_of: Int32 = np.full(len(listing.names), -1, np.int32)
    photo_of[rows] = np.arange(len(rows))
    logger.info("%s: %d photos, %d rejected", listing.source, len(names), len(rejected))
    return PosedPhotos(
        root=folder,
        names=names,
        paths=tuple(listing.photos.find(name) or listing.photos.place(name) for name in names),
        mask_paths=tuple(masks[i] for i in rows),
        cameras=cameras.scaled_down(downscale),
        is_test=_test_photos(names, rejected, own_split, test_list, test_every),
        points=None if listing.points is None else listing.points.renumbered(photo_of),
        rejected=tuple(sorted(rejected, key=lambda r: r.name)),
        georeference=georeference,
        downscale=downscale,
        own_split=own_split is not None or test_list is not None,
    )


def _read_listing(folder: Path, images: Path | None, check_photos: bool) -> Listing:
    sparse_dir = find_colmap(folder)
    if sparse_dir is None:
        if find_transforms(folder):
            return read_transforms(folder, images)
        places = ", ".join(place or "the folder itself" for place in MODEL_FOLDERS)
        raise DatasetError(
            f"{folder}: expected a COLMAP model (images.bin or images.txt in {places}), {TRANSFORMS_FILE} or Blender's "
            f"transforms_train.json, got none of them; give the folder that holds the poses"
        )
    if find_transforms(folder):
        logger.info("%s: reading the COLMAP model in %s, not the transforms file", folder, sparse_dir)
    if images is None:
        images = folder / "images"
        if sparse_dir == folder:  # the folder of the model itself was given
            above = (parent / "images" for parent in (folder, *folder.absolute().parents[:2]))
            images = next((path for path in above if path.is_dir()), images)
        if check_photos and not images.is_dir():
            raise DatasetError(f"{images}: expected a folder with the photos of {sparse_dir}, got none; give --images")
    return read_colmap(sparse_dir, images)


def _add_problems(
    problems: list[str | None], listing: Listing, masks: list[Path | None], downscale: int, check_photos: bool
) -> None:
    """Fill in why photos cannot be used, where that is not yet known: name, camera, mask, file."""
    of_camera = camera_problems(listing.cameras, downscale)
    seen: set[str] = set()
    to_open: dict[int, Path] = {}
    for i, name in enumerate(listing.names):
        problem = name_problem(name) or problems[i] or of_camera[listing.camera_index[i]]
        if problem is None and name in seen:
            problem = "it is listed more than once"
        if problem is None and listing.mask_names[i] is not None and masks[i] is None:
            problem = f"its mask {listing.mask_names[i]} does not exist"
        if problem is None and check_photos:
            path = listing.photos.find(name)
            if path is None:
                problem = MISSING_PHOTO
            else:
                to_open[i] = path
        seen.add(name)
        problems[i] = problem

    def inspect(i: int) -> str | None:
        camera = listing.cameras[listing.camera_index[i]]
        return camera if isinstance(camera, str) else file_problem(to_open[i], masks[i], camera)

    # latency of the disk or network, not the processor, is what takes time here
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for i, problem in zip(to_open, pool.map(inspect, to_open), strict=True):
            problems[i] = problem


def _find_masks(folder: Path, listing: Listing) -> list[Path | None]:
    """The mask file of every photo: the one that the pose file names, masks/NAME.jpg.png or masks/NAME.png."""
    parents = dict.fromkeys((folder / _MASK_FOLDER, listing.photos.path.parent / _MASK_FOLDER))
    mask_folders = [path for path in parents if path.is_dir()]
    # names of transforms.json begin with the photo folder, masks usually do not repeat it
    prefix = shared_folder(listing.names)
    masks: list[Path | None] = []
    for name, mask_name in zip(listing.names, listing.mask_names, strict=True):
        if mask_name is not None:
            masks.append(None if name_problem(mask_name) else find_file(folder, mask_name))
            continue
        stems = () if name_problem(name) else dict.fromkeys((name, name.removeprefix(prefix)))
        candidates = (
            find_file(mask_folder, form)
            for mask_folder in mask_folders
            for stem in stems
            for form in (f"{stem}.png", str(Path(stem).with_suffix(".png").as_posix()))
        )
        masks.append(next((path for path in candidates if path is not None), None))
    return masks


def _test_photos(
    names: tuple[str, ...], rejected: list[Rejected], own: OwnSplit | None, test_list: Path | None, test_every: int
) -> Bool:
    # a name that belongs to a rejected photo is not an error
    listed = (*names, *(r.name for r in rejected))
    if test_list is not None:
        source = str(test_list)
        chosen, missing = match_names(read_name_list(test_list), listed, source)
        if missing:
            raise DatasetError(
                f"{source}: expected names of photos in the data set, got {len(missing)} others: "
                f"{', '.join(missing[:_NUM_SHOWN])}; names are relative to the photo folder"
            )
    elif own is not None:
        source = own.source
        chosen, missing = match_names(own.test, listed, source)
        if missing:
            logger.warning("%s: %d test photos are not in the data set: %s", source, len(missing), missing[:_NUM_SHOWN])
    else:
        return every_kth(names, test_every)
    is_test = chosen[: len(names)]
    if not is_test.any():
        raise DatasetError(f"{source}: expected at least one usable test photo, got none; remove or correct the split")
    if is_test.all():
        raise DatasetError(f"{source}: expected photos to train on, got only test photos; remove or correct the split")
    return is_test


def _nothing_usable(listing: Listing, rejected: list[Rejected]) -> DatasetError:
    first: dict[str, str] = {}
    for r in rejected:
        first.setdefault(r.reason, r.name)
    common = Counter(r.reason for r in rejected).most_common(_NUM_SHOWN)
    reasons = "; ".join(f"{count} x {reason} (first: {first[reason]})" for reason, count in common)
    return DatasetError(
        f"{listing.source}: expected at least one usable photo, got 0 of {len(rejected)} listed; "
        f"{reasons or 'the file lists none'}"
    )
