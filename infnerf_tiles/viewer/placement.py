"""Where things of the scene stand on the page: browsers compute in float32, in units of their own."""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float64
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.geometry.rotation import quaternions_from_rotations, rotations_from_quaternions
from infnerf_tiles.rendering.camera_paths import default_orbit
from infnerf_tiles.rendering.scene import Scene, content_centre
from infnerf_tiles.rendering.vantage import world_up

_ORBIT_RADIUS = 10.0  # page units; depth reaches 160 of them there


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """A page unit is 1 / scale world units; the page's origin is `centre`, float64[3], world. Axes stay."""

    centre: Float64
    scale: float

    def to_page(self, points: Float64) -> Float64:
        """float64[..., 3], world to page."""
        return (points - self.centre) * self.scale

    def to_world(self, points: AnyArray) -> Float64:
        """Inverse of `to_page`."""
        world: Float64 = np.asarray(points, np.float64) / self.scale + self.centre
        return world

    def page_pose(self, camera_to_world: Float64) -> tuple[Float64, Float64]:
        """(quaternion float64[4] wxyz, position float64[3]) of a pose float64[3, 4]."""
        return quaternions_from_rotations(camera_to_world[None, :, :3])[0], self.to_page(camera_to_world[:, 3])

    def pose(self, wxyz: AnyArray, position: AnyArray) -> Float64:
        """float64[3, 4], camera-to-world, of a camera on the page."""
        rotation = rotations_from_quaternions(np.asarray(wxyz, np.float64)[None])[0]
        return np.column_stack([rotation, self.to_world(position)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """What a visitor sees first: a pose float64[3, 4], world, the point it looks at, up (both float64[3], world), and
    the vertical field of view in radians."""

    pose: Float64
    target: Float64
    up: Float64
    fov: float


def placement_of(scene: Scene) -> tuple[Placement, Start]:
    """A placement in which the photos' distance is a handy number of units, and a view from there."""
    centre = content_centre(scene)
    up = world_up(scene.cameras)
    orbit = default_orbit(scene.cameras, centre, frames=8)
    pose = orbit.camera_to_world[0]
    radius = float(np.linalg.norm(pose[:, 3] - centre))
    fov = 2.0 * float(np.arctan2(orbit.camera.height / 2, orbit.camera.fy))
    placement = Placement(centre=centre, scale=_ORBIT_RADIUS / radius if radius > 0 else 1.0)
    return placement, Start(pose=pose, target=centre, up=up, fov=fov)


def page_camera(fov: float, aspect: float, width: int) -> Camera:
    """A pinhole camera of `width` pixels with that vertical field of view (radians) and aspect (width / height)."""
    height = max(1, round(width / aspect))
    focal = height / 2 / np.tan(fov / 2)
    return Camera("PINHOLE", width, height, (float(focal), float(focal), width / 2, height / 2))
