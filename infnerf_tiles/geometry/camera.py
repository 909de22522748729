"""Camera models (COLMAP's, in COLMAP's parameter order, and nerfstudio's with four radial terms) and posed cameras.

Camera frame: OpenCV axes, x right, y down, z forward. Pixel coordinates are continuous, the first pixel's centre is at
(0.5, 0.5). "Plane" below means the image plane at focal length 1, distortion included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from infnerf_tiles.arrays import AnyArray, Bool, Float64, Int32, Int64, check_shape
from infnerf_tiles.errors import CameraError
from infnerf_tiles.geometry.distortion import Distortion

PARAM_NAMES: dict[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "OPENCV_K4": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4"),  # k4 of r^8, no denominator
}
PIXEL_TOLERANCE = 1e-9
_MAX_PARAM = 1e9  # far beyond any lens; keeps products of coefficients finite


@dataclass(frozen=True)
class Camera:
    """Intrinsics: model name, image size in pixels, parameters in COLMAP's order (pixels for f, cx, cy).

    CameraError for an unknown model, a wrong number of parameters, a non-finite one, a focal length or size that is not
    positive.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        names = PARAM_NAMES.get(self.model)
        if names is None:
            raise CameraError(
                f"camera model: expected one of {', '.join(PARAM_NAMES)}, got {self.model!r}; "
                "undistort the photos to one of these models"
            )
        params = tuple(float(v) for v in self.params)
        if len(params) != len(names):
            raise CameraError(f"{self.model} camera: expected {len(names)} parameters {names}, got {len(params)}")
        if not all(abs(v) < _MAX_PARAM for v in params):  # catches NaN too
            raise CameraError(f"{self.model} camera: expected finite, sensible parameters {names}, got {params}")
        object.__setattr__(self, "params", params)
        if self.width < 1 or self.height < 1:
            raise CameraError(f"{self.model} camera: expected a size of at least 1x1, got {self.width}x{self.height}")
        if min(self.fx, self.fy) <= 0:
            raise CameraError(f"{self.model} camera: expected focal lengths > 0 px, got {self.fx} and {self.fy}")

    def _param(self, *names: str) -> float:
        present = PARAM_NAMES[self.model]
        return next((self.params[present.index(name)] for name in names if name in present), 0.0)

    @property
    def fx(self) -> float:
        """Focal length along x, pixels."""
        return self._param("fx", "f")

    @property
    def fy(self) -> float:
        """Focal length along y, pixels."""
        return self._param("fy", "f")

    @property
    def cx(self) -> float:
        """Principal point x, pixels."""
        return self._param("cx")

    @property
    def cy(self) -> float:
        """Principal point y, pixels."""
        return self._param("cy")

    @property
    def focal(self) -> float:
        """sqrt(fx fy), pixels: the f of the footprint."""
        return float(np.sqrt(self.fx * self.fy))

    @cached_property
    def distortion(self) -> Distortion:
        """The map from ideal to distorted plane coordinates."""
        k = [self._param(f"k{i}") for i in range(1, 7)]
        if self.model == "OPENCV_FISHEYE":
            return Distortion(fisheye=True, numerator=(1.0, *k[:4]))
        tangential = (self._param("p1"), self._param("p2"))
        if self.model == "OPENCV_K4":
            return Distortion(numerator=(1.0, *k[:4]), tangential=tangential)
        return Distortion(numerator=(1.0, *k[:3]), denominator=(1.0, *k[3:]), tangential=tangential)

    def scaled_down(self, factor: int) -> "Camera":
        """The camera of the photo box-filtered by an integer factor, remainder rows and columns cropped.

        CameraError if nothing is left of the image.
        """
        if factor < 1:
            raise ValueError(f"camera reduction: expected an integer factor >= 1, got {factor}")
        if min(self.width, self.height) < factor:
            raise CameraError(
                f"camera reduction: expected a factor up to {min(self.width, self.height)} for an image of "
                f"{self.width}x{self.height}, got {factor}"
            )
        scaled = tuple(
            value / factor if name in ("f", "fx", "fy", "cx", "cy") else value
            for name, value in zip(PARAM_NAMES[self.model], self.params, strict=True)
        )
        return replace(self, width=self.width // factor, height=self.height // factor, params=scaled)

    def resized(self, width: int, height: int) -> "Camera":
        """The camera of the whole photo resampled to another size.

        Where rounding to whole pixels scales the axes differently, a model with one focal length becomes one with two.
        """
        across, down = width / self.width, height / self.height
        model, values = self.model, dict(zip(PARAM_NAMES[self.model], self.params, strict=True))
        if across != down and "f" in values:
            model = "PINHOLE" if model == "SIMPLE_PINHOLE" else "OPENCV"
            values |= {"fx": self.fx, "fy": self.fy}
        scale = {"f": across, "fx": across, "cx": across, "fy": down, "cy": down}
        params = tuple(values.get(name, 0.0) * scale.get(name, 1.0) for name in PARAM_NAMES[model])
        return Camera(model=model, width=width, height=height, params=params)

    def contains(self, xy: Float64) -> Bool:
        """bool[n]: which of float64[n, 2] pixel positions lie in the image, [0, width) x [0, height)."""
        inside: Bool = np.logical_and.reduce((xy >= 0) & (xy < np.array([self.width, self.height])), axis=1)
        return inside

    def check_rays(self) -> None:
        """CameraError if a pixel on the image's border has no ray (the distortion folds over inside the image)."""
        x, y = np.arange(self.width) + 0.5, np.arange(self.height) + 0.5
        sides = [np.stack(np.broadcast_arrays(x, v), axis=1) for v in (0.5, self.height - 0.5)]
        sides += [np.stack(np.broadcast_arrays(v, y), axis=1) for v in (0.5, self.width - 0.5)]
        unproject(self, np.concatenate(sides).astype(np.float64))


def project(camera: Camera, points_cam: Float64) -> tuple[Float64, Bool]:
    """Pixel positions of points in the camera frame.

    `points_cam`: float64[n, 3]. Returns (xy float64[n, 2], valid bool[n]); valid: in front of the camera (with the
    fisheye model: at any angle that it maps) and where the distortion is one-to-one. xy is 0 where not valid.
    """
    check_shape("points_cam", points_cam, (None, 3))
    plane, valid = camera.distortion.project(points_cam)
    xy = plane * np.array([camera.fx, camera.fy]) + np.array([camera.cx, camera.cy])
    valid &= np.isfinite(xy).all(axis=1)
    return np.where(valid[:, None], xy, 0.0), valid


def unproject(camera: Camera, xy: Float64) -> Float64:
    """Unit viewing directions, float64[n, 3] in the camera frame, of float64[n, 2] pixel positions.

    Exact to 1e-9 pixels when projected back. CameraError if a position has no ray under the distortion.
    """
    check_shape("xy", xy, (None, 2))
    focal = np.array([camera.fx, camera.fy])
    plane = (xy - np.array([camera.cx, camera.cy])) / focal
    directions, miss = camera.distortion.unproject(plane)
    bad = ~(miss * focal.max() <= PIXEL_TOLERANCE)  # catches NaN too
    if bad.any():
        where = tuple(np.round(xy[np.argmax(bad)], 1).tolist())
        raise CameraError(
            f"{camera.model} camera: expected a viewing ray for every pixel, got none for {int(bad.sum())} of "
            f"{len(xy)}, the first at {where}; the distortion {camera.params} folds over there: undistort these photos"
        )
    return directions


@dataclass(frozen=True, eq=False)
class PosedCameras:
    """Cameras and the poses of n photos.

    cameras: the distinct intrinsics. camera_index: int32[n], row in `cameras` of each photo. camera_to_world:
    float64[n, 3, 4], rotation and camera centre, OpenCV axes. CameraError if an index is out of range, a pose is not
    finite or its left 3x3 is not a rotation (to 1e-3). The arrays become read-only.
    """

    cameras: tuple[Camera, ...]
    camera_index: Int32
    camera_to_world: Float64

    def __post_init__(self) -> None:
        index = np.array(self.camera_index, dtype=np.int32)
        pose = np.array(self.camera_to_world, dtype=np.float64)
        check_shape("camera_index", index, (None,))
        check_shape("camera_to_world", pose, (len(index), 3, 4))
        if ((index < 0) | (index >= len(self.cameras))).any():
            raise CameraError(
                f"camera index: expected 0 to {len(self.cameras) - 1}, got {index.min()} to {index.max()}"
            )
        rotation = pose[:, :, :3]
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0)
            good = np.isfinite(pose).all(axis=(1, 2)) & (off <= 1e-3) & (np.linalg.det(rotation) > 0)
        if not good.all():
            raise CameraError(
                f"camera pose: expected a finite centre and a rotation matrix, got neither for {int((~good).sum())} of "
                f"{len(good)} photos, the first at row {int(np.argmin(good))}; drop those photos"
            )
        index.setflags(write=False)
        pose.setflags(write=False)
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "camera_index", index)
        object.__setattr__(self, "camera_to_world", pose)

    @property
    def num_photos(self) -> int:
        """Number of photos n."""
        return len(self.camera_index)

    @property
    def centres(self) -> Float64:
        """float64[n, 3] camera centres, world."""
        return self.camera_to_world[:, :, 3]

    @property
    def forwards(self) -> Float64:
        """float64[n, 3] unit optical axes, world."""
        axis = self.camera_to_world[:, :, 2]
        forwards: Float64 = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        return forwards

    @cached_property
    def focals(self) -> Float64:
        """float64[n] sqrt(fx fy) of each photo's camera, pixels."""
        return np.array([self.camera(i).focal for i in range(self.num_photos)], dtype=np.float64)

    def camera(self, photo: int) -> Camera:
        """The intrinsics of one photo."""
        return self.cameras[int(self.camera_index[photo])]

    def rays(self, photo: ArrayLike, xy: Float64) -> tuple[Float64, Float64]:
        """Rays of pixel positions.

        `photo`: int[n] or one for all; `xy`: float64[n, 2]. Returns (origins, unit directions), float64[n, 3], world.
        CameraError if a position has no ray.
        """
        check_shape("xy", xy, (None, 2))
        photos = np.broadcast_to(np.asarray(photo, dtype=np.int64), (len(xy),))
        local = np.empty((len(xy), 3), dtype=np.float64)
        for camera, rows in self._by_camera(photos):
            local[rows] = unproject(camera, xy[rows])
        pose = self.camera_to_world[photos]
        directions = np.einsum("nij,nj->ni", pose[:, :, :3], local)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return pose[:, :, 3], directions

    def project(self, photo: int, world: Float64) -> tuple[Float64, Float64, Bool]:
        """Where world points appear in one photo.

        `world`: float64[m, 3]. Returns (xy float64[m, 2] pixels, depth along the ray float64[m] world units, visible
        bool[m]: valid and inside the image; occlusion is not considered). xy is 0 where the projection is not valid.
        """
        check_shape("world", world, (None, 3))
        pose = self.camera_to_world[photo]
        offset = world - pose[:, 3]
        xy, valid = project(self.camera(photo), offset @ pose[:, :3])
        return xy, np.linalg.norm(offset, axis=1), valid & self.camera(photo).contains(xy)

    def subset(self, indices: ArrayLike) -> "PosedCameras":
        """The photos at int[k] indices (or a bool[n] mask), in that order; unused intrinsics are dropped."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        used, index = np.unique(self.camera_index[chosen], return_inverse=True)
        return PosedCameras(
            cameras=tuple(self.cameras[i] for i in used),
            camera_index=index.astype(np.int32),
            camera_to_world=self.camera_to_world[chosen],
        )

    def scaled_down(self, factor: int) -> "PosedCameras":
        """The same poses for photos reduced by an integer factor."""
        return replace(self, cameras=tuple(camera.scaled_down(factor) for camera in self.cameras))

    def _by_camera(self, photos: Int64) -> Iterator[tuple[Camera, AnyArray | slice]]:
        """(camera, rows of `photos` taken with it), without sorting when there is one."""
        index = self.camera_index[photos]
        if len(index) and (index == index[0]).all():
            yield self.cameras[index[0]], slice(None)
            return
        order = np.argsort(index, kind="stable")
        used, starts = np.unique(index[order], return_index=True)
        for i, rows in zip(used, np.split(order, starts[1:]), strict=False):
            yield self.cameras[i], rows
