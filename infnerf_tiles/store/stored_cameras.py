"""Cameras as arrays: intrinsics and poses float64, photo names relative, the split."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from infnerf_tiles.arrays import AnyArray, Bool, check_shape
from infnerf_tiles.errors import CameraError, DamagedStoreError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.store.bundle import Bundle


class StoredCameras(NamedTuple):
    """cameras of n photos; names: relative, posix; is_test: bool[n]."""

    cameras: PosedCameras
    names: tuple[str, ...]
    is_test: Bool


def cameras_to_bundle(
    cameras: PosedCameras, names: tuple[str, ...], is_test: Bool
) -> tuple[dict[str, AnyArray], Mapping[str, Any]]:
    """The arrays and facts to store. ValueError if the lengths differ."""
    if len(names) != cameras.num_photos:
        raise ValueError(f"photo names: expected {cameras.num_photos}, got {len(names)}")
    check_shape("is_test", is_test, (cameras.num_photos,))
    params = np.full((len(cameras.cameras), max((len(c.params) for c in cameras.cameras), default=0)), np.nan)
    for row, camera in zip(params, cameras.cameras, strict=True):
        row[: len(camera.params)] = camera.params
    return {
        "params": params,
        "size": np.array([(c.width, c.height) for c in cameras.cameras], dtype=np.int64).reshape(-1, 2),
        "camera_index": cameras.camera_index,
        "camera_to_world": cameras.camera_to_world,
        "is_test": np.asarray(is_test, dtype=np.bool_),
        "names": np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8),
    }, {"models": [camera.model for camera in cameras.cameras], "names": "UTF-8 JSON list"}


def cameras_from_bundle(bundle: Bundle, scene: str) -> StoredCameras:
    """Inverse of `cameras_to_bundle`; DamagedStoreError if the parts do not fit together."""
    try:
        arrays, models = bundle.arrays, list(bundle.meta["models"])
        names = tuple(str(name) for name in json.loads(arrays["names"].tobytes()))
        intrinsics = zip(models, arrays["size"].tolist(), arrays["params"].tolist(), strict=True)
        cameras = PosedCameras(
            cameras=tuple(
                Camera(model, width, height, tuple(value for value in params if value == value))  # NaN pads the row
                for model, (width, height), params in intrinsics
            ),
            camera_index=arrays["camera_index"],
            camera_to_world=arrays["camera_to_world"],
        )
        is_test: Bool = arrays["is_test"]
        check_shape("is_test", is_test, (cameras.num_photos,))
        if len(names) != cameras.num_photos:
            raise ValueError(f"{len(names)} names for {cameras.num_photos} photos")
    except (KeyError, TypeError, ValueError, CameraError) as error:
        raise DamagedStoreError(
            f"scene {scene}: its cameras contradict each other ({error}); build the scene again from its data set"
        ) from error
    return StoredCameras(cameras, names, is_test)
