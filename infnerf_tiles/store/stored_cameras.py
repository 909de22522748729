"""Cameras as arrays: intrinsics and poses float64, photo names relative, the split."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from infnerf_tiles.arrays import AnyArray, Bool, Int64, UInt8, check_shape
from infnerf_tiles.errors import CameraError, DamagedStoreError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.store.bundle import Bundle

_FILE_ARRAYS = ("file_bytes", "file_mtime_ns", "file_digest")


class StoredCameras(NamedTuple):
    """cameras of n photos; names: relative, posix; is_test: bool[n]."""

    cameras: PosedCameras
    names: tuple[str, ...]
    is_test: Bool


class StoredFiles(NamedTuple):
    """Marks of the photos with their masks: num_bytes int64[n], mtime_ns int64[n], digest uint8[n, 16]."""

    num_bytes: Int64
    mtime_ns: Int64
    digest: UInt8


def cameras_to_bundle(
    cameras: PosedCameras, names: tuple[str, ...], is_test: Bool, files: StoredFiles | None = None
) -> tuple[dict[str, AnyArray], Mapping[str, Any]]:
    """The arrays and facts to store. ValueError if the lengths differ."""
    if len(names) != cameras.num_photos:
        raise ValueError(f"photo names: expected {cameras.num_photos}, got {len(names)}")
    check_shape("is_test", is_test, (cameras.num_photos,))
    params = np.full((len(cameras.cameras), max((len(c.params) for c in cameras.cameras), default=0)), np.nan)
    for row, camera in zip(params, cameras.cameras, strict=True):
        row[: len(camera.params)] = camera.params
    marks: dict[str, AnyArray] = {}
    if files is not None:
        check_shape("digest", files.digest, (cameras.num_photos, None))
        check_shape("mtime_ns", files.mtime_ns, (cameras.num_photos,))
        check_shape("num_bytes", files.num_bytes, (cameras.num_photos,))
        marks = dict(zip(_FILE_ARRAYS, (files.num_bytes, files.mtime_ns, files.digest), strict=True))
    return {
        **marks,
        "params": params,
        "size": np.array([(c.width, c.height) for c in cameras.cameras], dtype=np.int64).reshape(-1, 2),
        "camera_index": cameras.camera_index,
        "camera_to_world": cameras.camera_to_world,
        "is_test": np.asarray(is_test, dtype=np.bool_),
        "names": np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8),
    }, {"models": [camera.model for camera in cameras.cameras], "names": "UTF-8 JSON list"}


def files_from_bundle(bundle: Bundle) -> StoredFiles | None:
    """The marks of the photos' files, None if they were not kept."""
    found = [bundle.arrays.get(name) for name in _FILE_ARRAYS]
    num_bytes, mtime_ns, digest = found
    if num_bytes is None or mtime_ns is None or digest is None:
        return None
    return StoredFiles(num_bytes.astype(np.int64), mtime_ns.astype(np.int64), digest.astype(np.uint8))


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
