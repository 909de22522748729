"""The three tables of a COLMAP model, as both file forms store them."""

from dataclasses import dataclass

from infnerf_tiles.arrays import AnyArray, Float32, Float64, Int64, UInt8

# COLMAP's model ids: name and number of parameters
MODELS: dict[int, tuple[str, int]] = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
MODEL_IDS = {name: number for number, (name, _) in MODELS.items()}


@dataclass(frozen=True, kw_only=True)
class CameraRecord:
    """One row of cameras.*: any model, any values."""

    camera_id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """images.*: image_ids, camera_ids int64[n]; quaternions float64[n, 4] (w, x, y, z) and translations float64[n, 3],
    world to camera. The 2D observations are not kept: tracks say which photo saw which point."""

    image_ids: Int64
    camera_ids: Int64
    quaternions: Float64
    translations: Float64
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PointTable:
    """points3D.*: xyz float64[m, 3], rgb uint8[m, 3], error float32[m], track_offsets int64[m + 1], track_image_ids
    int64[k] or uint32[k]."""

    xyz: Float64
    rgb: UInt8
    error: Float32
    track_offsets: Int64
    track_image_ids: AnyArray
