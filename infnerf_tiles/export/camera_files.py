"""Cameras as a transforms.json, which nerfstudio, instant-ngp and `build` read."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.rendering.scene import Scene

_DISTORTED = {
    "SIMPLE_PINHOLE": ("OPENCV", ()),
    "PINHOLE": ("OPENCV", ()),
    "SIMPLE_RADIAL": ("OPENCV", ("k1",)),
    "RADIAL": ("OPENCV", ("k1", "k2")),
    "OPENCV": ("OPENCV", ("k1", "k2", "p1", "p2")),
    "OPENCV_K4": ("OPENCV", ("k1", "k2", "p1", "p2", "k3", "k4")),
    "OPENCV_FISHEYE": ("OPENCV_FISHEYE", ("k1", "k2", "k3", "k4")),
}


def write_cameras(path: Path, scene: Scene) -> int:
    """Write poses (world coordinates, OpenGL axes as the format has it) and intrinsics per photo; returns their number.

    SettingsError for a camera model that the format does not have.
    """
    flip = np.diag([1.0, -1.0, -1.0])
    frames: list[dict[str, Any]] = []
    for photo, name in enumerate(scene.names):
        camera = scene.cameras.camera(photo)
        if camera.model not in _DISTORTED:
            raise SettingsError(f"{path}: photo {name}: transforms.json has no camera model {camera.model}")
        model, names = _DISTORTED[camera.model]
        pose = np.eye(4)
        pose[:3, :3] = scene.cameras.camera_to_world[photo, :, :3] @ flip
        pose[:3, 3] = scene.cameras.camera_to_world[photo, :, 3]
        facts: dict[str, Any] = {"w": camera.width, "h": camera.height, "fl_x": camera.fx, "fl_y": camera.fy}
        facts |= {"cx": camera.cx, "cy": camera.cy, "camera_model": model}
        facts |= dict(zip(names, camera.params[len(camera.params) - len(names) :], strict=True))
        frames.append({"file_path": name, "transform_matrix": pose.tolist(), **facts})
    is_test = dict(zip(scene.names, scene.is_test.tolist(), strict=True))
    split = {
        "train_filenames": [name for name in scene.names if not is_test[name]],
        "test_filenames": [name for name in scene.names if is_test[name]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"frames": frames, **split}, indent=1), "utf-8")
    return len(frames)
