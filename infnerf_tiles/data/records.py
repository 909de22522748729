"""What the readers hand over: sparse points, rejected photos, and a pose file's content before it met the photos."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Bool, Float32, Float64, Int32, Int64, UInt8, check_shape
from infnerf_tiles.data.names import find_file
from infnerf_tiles.geometry.camera import Camera


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Sparse points and the photos that saw them.

    xyz: float64[m, 3], world. rgb: uint8[m, 3]. error: float32[m], mean reprojection error in pixels of the photos as
    stored, 0 where unknown. The photos of point i are track_photos[track_offsets[i]:track_offsets[i + 1]], rows of the
    photo list (int32[k]; offsets int64[m + 1]); a file without tracks gives empty ones. untracked: bool[m], whether
    a point came without a track; one whose photos have all gone since did not. ValueError if shapes disagree.
    """

    xyz: Float64
    rgb: UInt8
    error: Float32
    track_offsets: Int64
    track_photos: Int32
    untracked: Bool = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.xyz)
        check_shape("point xyz", self.xyz, (None, 3))
        check_shape("point rgb", self.rgb, (count, 3))
        check_shape("point error", self.error, (count,))
        check_shape("point track_offsets", self.track_offsets, (count + 1,))
        check_shape("point track_photos", self.track_photos, (int(self.track_offsets[-1]),))
        object.__setattr__(self, "untracked", self.track_lengths == 0)

    @property
    def num_points(self) -> int:
        """Number of points m."""
        return len(self.xyz)

    @property
    def track_lengths(self) -> Int64:
        """int64[m]: how many observations each point has."""
        lengths: Int64 = np.diff(self.track_offsets)
        return lengths

    def renumbered(self, photo_of: Int32) -> "Points":
        """The same points for another photo list.

        photo_of: int32[n], new row of each old photo row, -1 for a photo that is gone. Observations in photos that are
        gone are dropped, the points stay.
        """
        if len(photo_of) and np.array_equal(photo_of, np.arange(len(photo_of))):
            return self
        photos = photo_of[self.track_photos].astype(np.int32)
        kept = photos >= 0
        before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        offsets, photos = (before[self.track_offsets], photos[kept]) if not kept.all() else (self.track_offsets, photos)
        found = replace(self, track_offsets=offsets, track_photos=photos)
        object.__setattr__(found, "untracked", self.untracked)
        return found


@dataclass(frozen=True)
class Rejected:
    """A photo that was listed but cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class OwnSplit:
    """A split that comes with the data set: names of the test photos, and of the training ones where it lists them.

    train is None when everything that is not test is for training.
    """

    source: str
    test: frozenset[str]
    train: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """Where the photos are: name N is the file `path` / (N without `prefix`)."""

    path: Path
    prefix: str = ""

    def place(self, name: str) -> Path:
        """Where a photo should be."""
        return self.path / name.removeprefix(self.prefix)

    def find(self, name: str) -> Path | None:
        """The file of a checked name, or None."""
        return find_file(self.path, name.removeprefix(self.prefix))


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Photos and poses as a pose file lists them, unchecked.

    source: the file or folder that was read, for messages. photos: where the photos of `names` are. mask_names:
    relative to the data set's folder, None where the file names no mask. cameras: distinct intrinsics of the stored
    photos, or the reason why they cannot be used. camera_index: int32[n]. camera_to_world: float64[n, 3, 4], OpenCV
    axes, any values. points: tracks refer to rows of `names`. rejected: entries that could not even be listed. applied:
    float64[3, 4] each, how the file says that its world was turned and moved from the original one.
    """

    source: Path
    photos: PhotoFolder
    names: tuple[str, ...]
    mask_names: tuple[str | None, ...]
    cameras: tuple[Camera | str, ...]
    camera_index: Int32
    camera_to_world: Float64
    points: Points | None = None
    split: OwnSplit | None = None
    rejected: tuple[Rejected, ...] = ()
    applied: tuple[Float64, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        check_shape("camera_index", self.camera_index, (count,))
        check_shape("camera_to_world", self.camera_to_world, (count, 3, 4))
        if len(self.mask_names) != count:
            raise ValueError(f"mask_names: expected {count} entries, got {len(self.mask_names)}")


def points_without_tracks(xyz: Float64, rgb: UInt8) -> Points:
    """Points of unknown visibility and error; rows that are not finite are left out."""
    finite = np.isfinite(xyz).all(axis=1)
    count = int(finite.sum())
    return Points(
        xyz=xyz[finite],
        rgb=rgb[finite],
        error=np.zeros(count, np.float32),
        track_offsets=np.zeros(count + 1, np.int64),
        track_photos=np.zeros(0, np.int32),
    )
