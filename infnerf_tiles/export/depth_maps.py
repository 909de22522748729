"""Depth as the photos' cameras see it, one file a photo; all of it, or what one node draws."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from infnerf_tiles.arrays import Bool, Float64
from infnerf_tiles.geometry.camera import unproject
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.video import write_floats


def write_depth_maps(
    renderer: Renderer,
    folder: Path,
    *,
    kind: Literal["npy", "tiff"] = "npy",
    pyramid: int = 0,
    node: NodeId | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write float32[h, w] distances along the ray, world units, inf where nothing is; returns the number of files.

    Cameras are the photos' own, distortion included, reduced by 2^pyramid; folders and names follow the photos'. node:
    surfaces outside that cube are inf, and photos that see nothing of it are left out. progress: (photos done, in all).
    """
    scene = renderer.scene
    written = 0
    for photo, name in enumerate(scene.names):
        camera = scene.cameras.camera(photo).scaled_down(2**pyramid)
        pose = scene.cameras.camera_to_world[photo]
        picture = renderer.render(camera, pose)
        depth = picture.depth
        if node is not None:
            directions = unproject(camera, _pixel_centres(camera.width, camera.height)) @ pose[:, :3].T
            inside = _inside(scene, picture, directions, pose, node)
            depth = np.where(inside, depth, np.float32(np.inf))
        if node is None or np.isfinite(depth).any():
            # with the photo's suffix, since "a.png" and "a.jpg" are two photos
            write_floats(folder / PurePosixPath(name).parent / f"{PurePosixPath(name).name}.{kind}", depth)
            written += 1
        if progress is not None:
            progress(photo + 1, len(scene.names))
    return written


def _pixel_centres(width: int, height: int) -> Float64:
    y, x = np.mgrid[:height, :width]
    return np.stack([x.ravel(), y.ravel()], axis=1) + 0.5


def _inside(scene: Scene, picture: Picture, directions: Float64, pose: Float64, node: NodeId) -> Bool:
    box = scene.header.root.node_box(node)
    depth = np.where(np.isfinite(picture.depth), picture.depth, 0.0).astype(np.float64).ravel()
    points = pose[:, 3] + directions * depth[:, None]
    within = ((points >= np.asarray(box.lo)) & (points < np.asarray(box.hi))).all(axis=1)
    return within.reshape(picture.depth.shape) & np.isfinite(picture.depth)
