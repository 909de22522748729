"""Where a data set's scene lies and how finely it was seen: the config that `InfNeRF` needs for it."""

from typing import Any

from infnerf_tiles.api.config import InfNeRFConfig
from infnerf_tiles.api.rays import PhotoSource, photo_source
from infnerf_tiles.arrays import Float64
from infnerf_tiles.data.observers import observers
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.bounds import finest_level, root_cube_from_cameras, root_cube_from_points
from infnerf_tiles.geometry.node_id import RootCube

_MIN_INSIDE = 0.5


def config_for_photos(dataset: Any, **changes: Any) -> InfNeRFConfig:
    """The config with the root cube and depth that `infnerf-tiles build` would choose for a data set.

    Args:
        dataset: photos, as `InfNeRFTrainer` takes them. changes: any fields of `InfNeRFConfig`.

    SettingsError for a data set without cameras; DatasetError if its cameras and points bound nothing.
    """
    source = photo_source(dataset)
    if source is None:
        raise SettingsError(f"config_for_photos: expected photos with cameras, got {type(dataset).__name__}")
    xyz = reliable_points(source)
    root = root_cube_from_cameras(source.cameras) if xyz is None else root_cube_from_points(xyz, source.cameras)
    found: dict[str, Any] = {"scene_bound": root.edge / 2.0, "root_origin": root.origin, **changes}
    if "max_depth" not in found:
        cells = InfNeRFConfig(**found).cells
        found["max_depth"] = finest_level(root, cells, source.cameras, 14, points=xyz)
    return InfNeRFConfig(**found)


def reliable_points(source: PhotoSource) -> Float64 | None:
    """float64 [m, 3]: sparse points that enough photos see; None without any."""
    points = source.points
    if points is None or not points.num_points:
        return None
    seen = observers(points, source.cameras).reliable
    return points.xyz[seen] if seen.any() else None


def check_bounds(root: RootCube, source: PhotoSource) -> None:
    """SettingsError if most of a data set's points lie outside the root cube."""
    xyz = reliable_points(source)
    if xyz is None:
        return
    unit = root.to_unit(xyz)
    inside = float(((unit >= 0) & (unit < 1)).all(axis=1).mean())
    if inside < _MIN_INSIDE:
        better = root_cube_from_points(xyz, source.cameras)
        raise SettingsError(
            f"InfNeRFConfig.scene_bound: expected a cube that holds the photos' sparse points, got one with "
            f"{100 * inside:.0f} % of them; use config_for_photos(dataset), or scene_bound={better.edge / 2:.6g} with "
            f"root_origin={tuple(round(v, 6) for v in better.origin)}"
        )
