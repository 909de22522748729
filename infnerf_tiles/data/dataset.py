"""Reading a data set: which photos can be used, their cameras, their split, and why the others cannot be used."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Bool, Int32, Int64, UInt8, check_shape
from infnerf_tiles.data.agreement import points_of_model
from infnerf_tiles.data.checks import camera_problems, clean_poses, fitted_camera
from infnerf_tiles.data.colmap import read_colmap
from infnerf_tiles.data.georeference import Georeference, read_georeference
from infnerf_tiles.data.masks import find_masks
from infnerf_tiles.data.names import MISSING_PHOTO, name_problem
from infnerf_tiles.data.photos import PhotoFile
from infnerf_tiles.data.placing import missing_photo, place_model_photos
from infnerf_tiles.data.records import Listing, OwnSplit, Points, Rejected
from infnerf_tiles.data.sources import Source, find_source
from infnerf_tiles.data.splits import every_kth, match_names, read_name_list, read_split_file
from infnerf_tiles.data.transforms_json import read_transforms
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera, PosedCameras

__all__ = ["Georeference", "Points", "PosedPhotos", "Rejected", "read_dataset"]

logger = logging.getLogger(__name__)

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

    @property
    def num_masked(self) -> int:
        """Number of photos with a mask file."""
        return sum(path is not None for path in self.mask_paths)

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

    folder: the data set's, or that of a model, or one .json file.

    images: where the photos are, if not there. downscale: integer by which photos and cameras are reduced. Test
    photos: those of `test_list`, else of the data set's own split, else every `test_every`-th name (0: none).
    check_photos: open every photo's header and compare it with its camera; without it, photos need not even
    exist, and cameras are as listed.

    A photo that cannot be used is in `rejected` with its reason. DatasetError if the folder holds no data set, a pose
    file is damaged, or no photo is usable; SettingsError for a wrong `downscale` or `test_every`.
    """
    if downscale < 1:
        raise SettingsError(f"data.downscale: expected an integer of at least 1, got {downscale}")
    every_kth((), test_every)
    source = find_source(folder)
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images}: expected a folder with the photos, got none; check --images")
    listing, folder = _read_listing(source, images, check_photos), source.folder
    georeference = read_georeference(folder)
    poses, problems = clean_poses(listing.camera_to_world)
    masks = find_masks(folder, listing, tell=check_photos)
    listing = _add_problems(problems, listing, masks, downscale, check_photos)

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


def _read_listing(source: Source, images: Path | None, check_photos: bool) -> Listing:
    if not source.reads_model or source.model is None:
        listing = read_transforms(source.transforms, images)
        return listing if source.model is None else _with_tracks(listing, source.model)
    listing = read_colmap(source.model)
    photos = place_model_photos(source.folder, images, listing.names)
    if check_photos and not photos.path.is_dir():
        raise DatasetError(
            f"{photos.path}: expected a folder with the photos of {source.model}, got none; give --images"
        )
    return replace(listing, photos=photos)


def _with_tracks(listing: Listing, folder: Path) -> Listing:
    """The listing of a transforms file with the points of the COLMAP model that it was made from, if they agree."""
    model = read_colmap(folder)
    points = points_of_model(listing, model, listing.applied)
    taken = not isinstance(points, str)
    what = "its points are taken, for their tracks" if taken else f"nothing of it is taken: {points}"
    logger.log(
        logging.INFO if taken else logging.WARNING,
        "%s: the %d frames of this file are read, not the %d photos of the COLMAP model in %s; %s",
        listing.source, len(listing.names), len(model.names), folder, what,
    )  # fmt: skip
    return listing if isinstance(points, str) else replace(listing, points=points)


def _add_problems(
    problems: list[str | None],
    listing: Listing,
    masks: list[Path | None],
    downscale: int,
    check_photos: bool,
) -> Listing:
    """Fill in why photos cannot be used, where that is not yet known: name, camera, mask, file.

    Returns the listing with the cameras that the photos have as they are stored.
    """
    of_camera = camera_problems(listing.cameras, downscale)
    seen: set[str] = set()
    to_open: dict[int, Path] = {}
    for i, name in enumerate(listing.names):
        camera = listing.cameras[listing.camera_index[i]]
        problem = name_problem(name) or problems[i] or of_camera[listing.camera_index[i]]
        if problem is None and name in seen:
            problem = "it is listed more than once"
        if problem is None and listing.mask_names[i] is not None and masks[i] is None:
            problem = f"its mask {listing.mask_names[i]} does not exist"
        if problem is None and check_photos:
            path = listing.photos.find(name)
            if path is None:
                problem = missing_photo(listing.photos, name)
            else:
                to_open[i] = path
        seen.add(name)
        problems[i] = problem

    @cache
    def problem_of(camera: Camera) -> str | None:
        return camera_problems([camera], downscale)[0]

    def inspect(i: int) -> Camera | str:
        camera = listing.cameras[listing.camera_index[i]]
        if isinstance(camera, str):
            return camera
        found = fitted_camera(to_open[i], masks[i], camera)
        return found if found is camera or isinstance(found, str) else problem_of(found) or found

    # latency of the disk or network, not the processor, is what takes time here
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        found = dict(zip(to_open, pool.map(inspect, to_open), strict=True))
    for i, camera in found.items():
        problems[i] = camera if isinstance(camera, str) else None
    return _with_cameras(listing, {i: c for i, c in found.items() if isinstance(c, Camera)})


def _with_cameras(listing: Listing, found: Mapping[int, Camera]) -> Listing:
    """The listing with other cameras for some rows."""
    resized = {i: camera for i, camera in found.items() if camera != listing.cameras[listing.camera_index[i]]}
    if not resized:
        return listing
    cameras = [*listing.cameras]
    row_of = {camera: len(cameras) + row for row, camera in enumerate(dict.fromkeys(resized.values()))}
    index = listing.camera_index.copy()
    counts: Counter[tuple[int, int, int, int]] = Counter()
    for i, camera in resized.items():
        then = listing.cameras[index[i]]
        if isinstance(then, Camera):
            counts[camera.width, camera.height, then.width, then.height] += 1
        index[i] = row_of[camera]
    shown = ", ".join(
        f"{count} of {w}x{h}, {w / then_w:.4g} of {then_w}x{then_h}"
        for (w, h, then_w, then_h), count in counts.most_common(_NUM_SHOWN)
    )
    logger.warning(
        "%s: %d of %d photos are not of their camera's size and were taken for scaled ones: their cameras are "
        "scaled alike (%s); if they are not the same pictures, give others by --images",
        listing.source, len(resized), len(listing.names), shown,
    )  # fmt: skip
    return replace(listing, cameras=(*cameras, *row_of), camera_index=index)


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
        if not own.test:
            logger.warning(
                "%s: lists no test photos, so none is held out and eval has nothing to score; list some there or in "
                "split.json", source,
            )  # fmt: skip
            return np.zeros(len(names), np.bool_)
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
    first: dict[str, Rejected] = {}
    kinds = [MISSING_PHOTO if r.reason.startswith(MISSING_PHOTO) else r.reason for r in rejected]
    for kind, r in zip(kinds, rejected, strict=True):
        first.setdefault(kind, r)
    common = Counter(kinds).most_common(_NUM_SHOWN)
    reasons = "; ".join(f"{count} x {first[kind].reason} (first: {first[kind].name})" for kind, count in common)
    return DatasetError(
        f"{listing.source}: expected at least one usable photo, got 0 of {len(rejected)} listed; "
        f"{reasons or 'the file lists none'}"
    )
