"""What a render's pixels show: which treelet, and how far from the faces of the nodes that draw it.

Neighbouring nodes are stored apart, and neighbouring treelets are trained apart. A seam between them would show as
larger errors, or as edges that the photo does not have, in the strips of pixels along their faces. Each is compared
with strips a few voxels further in on both sides: they cut through the same content, seen by the same photos. That is
done axis by axis, and the middle one of the three ratios counts: the ground lies at one and the same distance from the
faces that look up, so that these compare walls with ground.
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
BESIDE = (6.0, 10.0)
"""Where the strips lie that those are compared with, in the same voxels from the face."""
STRIPS = ("beside node faces", "node faces", "beside treelet faces", "treelet faces")
"""Strips along faces, each behind the one that it is compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surfaces:
    """Per pixel of a picture, row by row.

    strips: bool[4, 3, h, w], whether the surface lies in each of STRIPS, by axis of the face. treelet: int64[h, w],
    root key of the treelet of the finest band around it, −1 where there is none.
    """

    strips: Bool
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
    strips = np.zeros((len(STRIPS), 3, *seen.shape), np.bool_)
    treelet = np.full(seen.shape, -1, np.int64)
    strips[:, :, seen], treelet[seen] = _classify(scene, unit, wanted)
    return Surfaces(strips=strips.reshape(-1, 3, *shape), treelet=treelet.reshape(shape))


def _classify(scene: Scene, unit: Float64, wanted: Float64) -> tuple[Bool, Int64]:
    """(bool[4, 3, m] STRIPS, treelet root of the finest band) of points float64[m, 3] drawn at levels float64[m]."""
    octree, cells = scene.octree, scene.header.cells
    bands = np.asarray(scene.header.band_levels)
    rows = octree.deepest_row(unit, np.maximum(np.ceil(wanted), 0).astype(np.int64))
    level = octree.levels[rows].astype(np.int64)
    band_level = bands[np.searchsorted(bands, level, side="right") - 1]
    scale = cells * np.exp2(level - band_level)[:, None]
    to_treelet, to_node = _to_face(unit, band_level) * scale, _to_face(unit, level) * cells
    at_treelet = to_treelet <= STRIP_VOXELS
    strips = [
        (to_node >= BESIDE[0]) & (to_node <= BESIDE[1]) & ~at_treelet,
        (to_node <= STRIP_VOXELS) & ~at_treelet,
        (to_treelet >= BESIDE[0]) & (to_treelet <= BESIDE[1]),
        at_treelet,
    ]
    deepest = octree.deepest_row(unit)
    finest = octree.levels[deepest] >= bands[-1]
    treelet = np.full(len(unit), -1, np.int64)
    treelet[finest] = ancestor_keys(octree.keys[deepest[finest]], int(bands[-1]))
    return np.stack(strips).transpose(0, 2, 1), treelet


def _to_face(unit: Float64, level: Int64) -> Float64:
    """Distance float64[m, 3] to the nearer face across each axis of the cube of `level` around each point.

    In edges of that cube. The faces of the root cube do not count: nothing meets there.
    """
    inside = unit * np.exp2(level)[:, None]
    low, high = inside - np.floor(inside), np.floor(inside) + 1 - inside
    low[inside < 1.0] = np.inf
    high[inside >= np.exp2(level)[:, None] - 1] = np.inf
    nearest: Float64 = np.minimum(low, high)
    return nearest


class StripSums:
    """Adds up errors and gradient energies by strip, over photos."""

    def __init__(self) -> None:
        self._pixels, self._error, self._render_energy, self._photo_energy = (
            np.zeros((len(STRIPS), 3)) for _ in range(4)
        )

    def add(self, strips: Bool, usable: Bool, render: Float64, photo: Float64) -> None:
        """Count one photo. strips: bool[4, 3, h, w]; usable: bool[h, w]; render, photo: float64[h, w, 3] in [0, 1]."""
        error = np.abs(render - photo).mean(axis=2)
        energies = _energy(render), _energy(photo)
        for at in np.ndindex(*self._pixels.shape):
            strip = strips[at] & usable
            self._pixels[at] += strip.sum()
            self._error[at] += error[strip].sum()
            # differences to the right and downwards, where all three pixels lie in the strip
            whole = strip[:-1, :-1] & strip[:-1, 1:] & strip[1:, :-1]
            self._render_energy[at] += energies[0][whole].sum()
            self._photo_energy[at] += energies[1][whole].sum()

    def figures(self) -> tuple["StripFigures", ...]:
        """Per strip, in the order of STRIPS."""
        with np.errstate(divide="ignore", invalid="ignore"):
            error = self._error / self._pixels
            sharpness = self._render_energy / self._photo_energy
            # each pair is measured by its first
            error_ratio, gradient_ratio = error / error[::2].repeat(2, axis=0), sharpness / sharpness[::2].repeat(2, 0)
            mean = self._error.sum(axis=1) / self._pixels.sum(axis=1)
        return tuple(
            StripFigures(
                where=name,
                pixels=int(self._pixels[i].sum()),
                error=_finite(mean[i]),
                error_ratio=_middle(error_ratio[i]),
                gradient_ratio=_middle(gradient_ratio[i]),
                error_ratios=tuple(_finite(ratio) for ratio in error_ratio[i]),
            )
            for i, name in enumerate(STRIPS)
        )


@dataclass(frozen=True, kw_only=True)
class StripFigures:
    """A strip of surface pixels, over all photos.

    error: mean |render − photo|, sRGB in [0, 1]. error_ratio: that over the same in the strip beside. gradient_ratio:
    gradient energy of the render over that of the photo, divided by the same in the strip beside; above 1 means edges
    that the photos do not have. Both are the middle ones of the three axes; error_ratios: by axis. None where there are
    no such pixels.
    """

    where: str
    pixels: int
    error: float | None
    error_ratio: float | None
    gradient_ratio: float | None
    error_ratios: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        names = ("where", "pixels", "error", "error_ratio", "gradient_ratio")
        return {**{name: getattr(self, name) for name in names}, "error_ratios": list(self.error_ratios)}


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
    """A treelet of the finest band: PSNR (dB) of all surface pixels that show it, with a colour transform
    fitted to each photo."""

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


def _middle(ratios: Float64) -> float | None:
    known = ratios[np.isfinite(ratios)]
    return float(np.median(known)) if len(known) else None
