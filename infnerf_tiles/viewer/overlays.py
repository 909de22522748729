"""What can be laid over the picture: node boxes, photos, and the key poses of a camera path."""

from collections.abc import Callable
from functools import partial

import numpy as np
import viser

from infnerf_tiles.arrays import Float32, Float64, Int64, UInt8
from infnerf_tiles.geometry.node_id import decode_keys
from infnerf_tiles.rendering.camera_paths import flythrough
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.video import level_heat_map
from infnerf_tiles.viewer.placement import Placement, page_camera

MAX_BOXES = 3000
MAX_PHOTOS = 400
_RESIDENT, _COMING = (70, 200, 90), (250, 150, 40)
_KEY_COLOUR, _LINE_COLOUR = (235, 60, 120), (235, 60, 120)
_PHOTO_COLOUR = (60, 130, 235)
# the twelve edges of a cube by its corners, corner = x + 2 y + 4 z
_EDGES = np.array([(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit])
_CORNERS = (np.arange(8)[:, None] >> np.arange(3)) & 1


def box_lines(scene: Scene, placement: Placement, keys: Int64) -> Float32:
    """float32[12 k, 2, 3], page: the edges of the cubes of nodes int64[k]."""
    levels, xyz = decode_keys(keys)
    edge = (scene.header.root.edge / np.exp2(levels.astype(np.float64)))[:, None, None]
    corners = np.asarray(scene.header.root.origin) + (xyz[:, None] + _CORNERS[None]) * edge
    lines: Float32 = placement.to_page(corners)[:, _EDGES].reshape(-1, 2, 3).astype(np.float32)
    return lines


def box_colours(scene: Scene, keys: Int64, resident: int, *, by_level: bool) -> UInt8:
    """uint8[12 k, 2, 3]: of the level, or of whether a node is resident (the first `resident`) or on its way."""
    if by_level:
        levels, _ = decode_keys(keys)
        colours = level_heat_map(levels[:, None].astype(np.float32), scene.octree.depth)[:, 0]
    else:
        colours = np.where(np.arange(len(keys))[:, None] < resident, _RESIDENT, _COMING).astype(np.uint8)
    repeated: UInt8 = np.repeat(colours, 12, axis=0)[:, None].repeat(2, axis=1)
    return repeated


def _clicked(fly_to: Callable[[int], None], photo: int, _: object) -> None:
    fly_to(photo)


class Overlays:
    """The things on one visitor's page."""

    def __init__(self, client: viser.ClientHandle, scene: Scene, placement: Placement) -> None:
        self._client = client
        self._scene = scene
        self._placement = placement
        self._boxes: viser.LineSegmentsHandle | None = None
        self._photos: list[viser.CameraFrustumHandle] = []
        self._path: list[viser.SceneNodeHandle] = []

    def show_boxes(self, resident: Int64, coming: Int64, *, by_level: bool) -> int:
        """Draw the cubes of nodes, coarse ones first, up to MAX_BOXES; returns how many are left out."""
        coming = np.setdiff1d(coming, resident)
        left_out = max(0, len(resident) + len(coming) - MAX_BOXES)
        resident = resident[: MAX_BOXES - min(len(coming), MAX_BOXES // 4)]
        keys = np.concatenate([resident, coming])[:MAX_BOXES]
        self.hide_boxes()
        if len(keys):
            self._boxes = self._client.scene.add_line_segments(
                "/boxes",
                points=box_lines(self._scene, self._placement, keys),
                colors=box_colours(self._scene, keys, len(resident), by_level=by_level),
                thickness=1.5,
                thickness_units="screen",
            )
        return left_out

    def hide_boxes(self) -> None:
        """Take the cubes away."""
        if self._boxes is not None:
            self._boxes.remove()
            self._boxes = None

    def show_photos(self, fly_to: Callable[[int], None]) -> None:
        """Draw the photos' cameras, evenly chosen; a click on one calls `fly_to` with its number."""
        self.hide_photos()
        cameras = self._scene.cameras
        chosen = np.unique(np.linspace(0, cameras.num_photos - 1, min(cameras.num_photos, MAX_PHOTOS)).round())
        with self._client.atomic():
            for photo in chosen.astype(int).tolist():
                camera = cameras.camera(photo)
                wxyz, position = self._placement.page_pose(cameras.camera_to_world[photo])
                frustum = self._client.scene.add_camera_frustum(
                    f"/photos/{photo}",
                    fov=2 * float(np.arctan2(camera.height / 2, camera.fy)),
                    aspect=camera.width / camera.height,
                    scale=0.25,
                    color=_PHOTO_COLOUR,
                    wxyz=wxyz,
                    position=position,
                    cast_shadow=False,
                    receive_shadow=False,
                )
                frustum.on_click(partial(_clicked, fly_to, photo))
                self._photos.append(frustum)

    def hide_photos(self) -> None:
        """Take the photos' cameras away."""
        with self._client.atomic():
            for frustum in self._photos:
                frustum.remove()
        self._photos = []

    def show_path(self, poses: list[Float64], fov: float, aspect: float, *, loop: bool) -> None:
        """Draw key poses float64[3, 4], and the flight through them."""
        with self._client.atomic():
            for node in self._path:
                node.remove()
            self._path = []
            for number, pose in enumerate(poses):
                wxyz, position = self._placement.page_pose(pose)
                self._path.append(
                    self._client.scene.add_camera_frustum(
                        f"/path/{number}",
                        fov=fov,
                        aspect=aspect,
                        scale=0.35,
                        color=_KEY_COLOUR,
                        wxyz=wxyz,
                        position=position,
                        cast_shadow=False,
                        receive_shadow=False,
                    )
                )
            if len(poses) > 1:
                camera = page_camera(fov, aspect, 64)
                flight = flythrough(camera, np.array(poses), frames=20 * len(poses), loop=loop).camera_to_world
                points = self._placement.to_page(flight[:, :, 3]).astype(np.float32)
                self._path.append(
                    self._client.scene.add_line_segments(
                        "/path/line",
                        points=np.stack([points[:-1], points[1:]], axis=1),
                        colors=_LINE_COLOUR,
                        thickness=2.0,
                        thickness_units="screen",
                    )
                )
