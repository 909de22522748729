"""What a render's pixels show: which treelet, and how far from the faces of the nodes that draw it.

Neighbouring nodes are stored apart, and neighbouring treelets are trained apart. A seam between them would show as
larger errors, or as edges that the photo does not have, in the strips of pixels along their faces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, Int64
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.geometry.footprint import wanted_level
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys
from infnerf_tiles.rendering.renderer import Picture
from infnerf_tiles.rendering.scene import Scene

STRIP_VOXELS = 2.0
"""Half the width of a strip, in voxels of the node that draws."""
OPAQUE = 0.9
"""Opacity above which a pixel shows a surface."""
CLASSES = ("interior", "node faces", "treelet faces")


@dataclass(frozen=True, kw_only=True, eq=False)
class Surfaces:
    """Per pixel of a picture, row by row.

    kind: int64[h, w], index in CLASSES of where the surface lies, −1 where there is none. treelet: int64[h, w], root
    key of the treelet of the finest band around it, −1 where there is none.
    """

    kind: Int64
    treelet: Int64


def surfaces(scene: Scene, camera: Camera, camera_to_world: Float64, picture: Picture, lod_bias: float) -> Surfaces:
    """Where the surface that each pixel shows lies in the octree; `lod_bias` as the picture was drawn with."""
    shape = picture.depth.shape
    seen = ((1.0 - picture.transmittance > OPAQUE) & np.isfinite(picture.depth)).ravel()
    y, x = np.mgrid[: shape[0], : shape[1]]
    xy = np.stack([x.ravel(), y.ravel()], axis=1)[seen] + 0.5
    distance = picture.depth.ravel()[seen].astype(np.float64)
    directions = unproject(camera, xy) @ camera_to_world[:, :3].T
    unit = scene.header.root.to_unit(camera_to_world[:, 3] + distance[:, None] * directions)
    unit = np.clip(unit, 0.0, np.nextafter(1.0, 0.0))  # a mean distance may end a hair outside
    lattice = scene.lattice(lod_bias)
    wanted = wanted_level(lattice.gsd_root, distance / camera.focal, lattice.lod_bias)
    kind = np.full(seen.shape, -1, np.int64)
    treelet = np.full(seen.shape, -1, np.int64)
    kind[seen], treelet[seen] = _classify(scene, unit, wanted)
    return Surfaces(kind=kind.reshape(shape), treelet=treelet.reshape(shape))


def _classify(scene: Scene, unit: Float64, wanted: Float64) -> tuple[Int64, Int64]:
    """(kind, treelet root of the finest band) of points float64[m, 3] drawn at wanted levels float64[m]."""
    octree, cells = scene.octree, scene.header.cells
    bands = np.asarray(scene.header.band_levels)
    rows = octree.deepest_row(unit, np.maximum(np.ceil(wanted), 0).astype(np.int64))
    level = octree.levels[rows].astype(np.int64)
    band_level = bands[np.searchsorted(bands, level, side="right") - 1]
    to_node = _voxels_to_face(unit, level) * cells
    to_treelet = _voxels_to_face(unit, band_level) * cells * np.exp2(level - band_level)
    kind = np.where(to_node <= STRIP_VOXELS, 1, 0)
    kind[to_treelet <= STRIP_VOXELS] = 2
    deepest = octree.deepest_row(unit)
    finest = octree.levels[deepest] >= bands[-1]
    treelet = np.full(len(unit), -1, np.int64)
    treelet[finest] = ancestor_keys(octree.keys[deepest[finest]], int(bands[-1]))
    return kind, treelet


def _voxels_to_face(unit: Float64, level: Int64) -> Float64:
    """Distance float64[m] to the nearest face of the cube of `level` around each point, in edges of that cube.

    The faces of the root cube do not count: nothing meets there.
    """
    inside = unit * np.exp2(level)[:, None]
    low, high = inside - np.floor(inside), np.floor(inside) + 1 - inside
    low[inside < 1.0] = np.inf
    high[inside >= np.exp2(level)[:, None] - 1] = np.inf
    nearest: Float64 = np.minimum(low, high).min(axis=1)
    return nearest


class StripSums:
    """Adds up errors and gradient energies by class of pixel, over photos."""

    def __init__(self) -> None:
        self._pixels = np.zeros(len(CLASSES))
        self._error = np.zeros(len(CLASSES))
        self._gradients = np.zeros(len(CLASSES))
        self._render_energy = np.zeros(len(CLASSES))
        self._photo_energy = np.zeros(len(CLASSES))

    def add(self, kind: Int64, usable: Bool, render: Float64, photo: Float64) -> None:
        """Count one photo. kind: int64[h, w]; usable: bool[h, w]; render and photo: float64[h, w, 3] in [0, 1]."""
        counted = usable & (kind >= 0)
        error = np.abs(render - photo).mean(axis=2)
        self._pixels += np.bincount(kind[counted], minlength=len(CLASSES))
        self._error += np.bincount(kind[counted], error[counted], len(CLASSES))
        # differences to the right and downwards, where all three pixels show a surface
        whole = counted[:-1, :-1] & counted[:-1, 1:] & counted[1:, :-1]
        at = kind[:-1, :-1][whole]
        self._gradients += np.bincount(at, minlength=len(CLASSES))
        self._render_energy += np.bincount(at, _energy(render)[whole], len(CLASSES))
        self._photo_energy += np.bincount(at, _energy(photo)[whole], len(CLASSES))

    def figures(self) -> tuple["StripFigures", ...]:
        """Per class of pixels, in the order of CLASSES."""
        with np.errstate(divide="ignore", invalid="ignore"):
            error = self._error / self._pixels
            sharpness = self._render_energy / self._photo_energy
            error_ratio, gradient_ratio = error / error[0], sharpness / sharpness[0]
        return tuple(
            StripFigures(
                where=name,
                pixels=int(self._pixels[i]),
                error=_finite(error[i]),
                error_ratio=_finite(error_ratio[i]),
                gradient_ratio=_finite(gradient_ratio[i]),
            )
            for i, name in enumerate(CLASSES)
        )


@dataclass(frozen=True, kw_only=True)
class StripFigures:
    """A class of surface pixels, over all photos.

    error: mean |render − photo|, sRGB in [0, 1]. error_ratio: that over the interior's. gradient_ratio: gradient energy
    of the render over that of the photo, divided by the same in the interior; above 1 means edges that the photos do
    not have. None where there are no such pixels.
    """

    where: str
    pixels: int
    error: float | None
    error_ratio: float | None
    gradient_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name) for name in ("where", "pixels", "error", "error_ratio", "gradient_ratio")}


class RegionSums:
    """Adds up squared errors by treelet, over photos."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, float]] = {}

    def add(self, treelet: Int64, usable: Bool, render: Float64, photo: Float64) -> None:
        """Count one photo; arguments as in `StripSums.add`, treelet: int64[h, w], root keys, −1 for none."""
        counted = usable & (treelet >= 0)
        error = ((render - photo) ** 2).mean(axis=2)[counted]
        keys, group = np.unique(treelet[counted], return_inverse=True)
        pixels, sums = np.bincount(group, minlength=len(keys)), np.bincount(group, error, len(keys))
        for key, num, total in zip(keys.tolist(), pixels.tolist(), sums.tolist(), strict=True):
            before = self._sums.get(key, (0, 0.0))
            self._sums[key] = (before[0] + num, before[1] + total)

    def figures(self) -> tuple["RegionFigures", ...]:
        """Per treelet, ascending by key."""
        return tuple(
            RegionFigures(
                treelet=str(NodeId.from_key(key)),
                pixels=num,
                psnr=-10.0 * float(np.log10(max(total / num, 1e-12))),
            )
            for key, (num, total) in sorted(self._sums.items())
        )


@dataclass(frozen=True, kw_only=True)
class RegionFigures:
    """A treelet of the finest band: PSNR (dB) of all surface pixels that show it, with the mean colour transform."""

    treelet: str
    pixels: int
    psnr: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"treelet": self.treelet, "pixels": self.pixels, "psnr": self.psnr}


def _energy(image: Float64) -> Float64:
    """float64[h − 1, w − 1] squared differences of float64[h, w, 3] to the right and downwards, over the channels."""
    right, down = image[:-1, 1:] - image[:-1, :-1], image[1:, :-1] - image[:-1, :-1]
    energy: Float64 = (right**2 + down**2).sum(axis=2)
    return energy


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
