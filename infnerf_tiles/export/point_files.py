"""Point clouds as files: PLY, LAS and LAZ, in the scene's CRS."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.export.cloud import Cloud
from infnerf_tiles.export.earth import Earth

POINT_SUFFIXES = (".ply", ".las", ".laz")
_PARTIAL = ".partial"
_MAX_RAW = 2**31 - 1  # LAS coordinates are int32


def write_points(path: Path, cloud: Cloud, earth: Earth, precision: float) -> None:
    """Write a cloud; the suffix says how. Coordinates are those of the CRS, else of the world.

    precision: grid of LAS coordinates, world units; coarsened to a power of ten that fits the extent. SettingsError for
    another suffix, a library that is missing, or a CRS that is not known.
    """
    suffix = path.suffix.lower()
    if suffix not in POINT_SUFFIXES:
        raise SettingsError(f"{path}: expected a name ending in {', '.join(POINT_SUFFIXES)}, got {suffix or 'none'}")
    xyz = earth.to_crs(cloud.xyz)
    partial = path.with_name(f".{path.stem}{_PARTIAL}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if suffix == ".ply":
            _write_ply(partial, xyz, cloud, earth)
        else:
            _write_las(partial, xyz, cloud, earth, precision)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_ply(path: Path, xyz: AnyArray, cloud: Cloud, earth: Earth) -> None:
    names = ("x", "y", "z")
    table = np.empty(
        cloud.num_points,
        [*((name, "<f8") for name in names), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
    )
    for axis, name in enumerate(names):
        table[name] = xyz[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        table[name] = cloud.rgb[:, channel]
    lines = ["ply", "format binary_little_endian 1.0", f"comment crs {earth.crs or 'none, units of the scene'}"]
    lines += [f"element vertex {cloud.num_points}", *(f"property double {name}" for name in names)]
    lines += [*(f"property uchar {name}" for name in ("red", "green", "blue")), "end_header"]
    with path.open("wb") as file:
        file.write(("\n".join(lines) + "\n").encode("ascii", "replace"))
        file.write(table.tobytes())


def _write_las(path: Path, xyz: AnyArray, cloud: Cloud, earth: Earth, precision: float) -> None:
    try:
        import laspy
    except ImportError as error:
        raise SettingsError(
            f"{path.name}: expected the library laspy, which is not installed; pip install 'infnerf-tiles[geo]'"
        ) from error
    header: Any = laspy.LasHeader(point_format=7, version="1.4")
    low = xyz.min(axis=0) if len(xyz) else np.zeros(3)
    extent = float((xyz.max(axis=0) - low).max()) if len(xyz) else 0.0
    finest = max(precision, extent / _MAX_RAW, 1e-9)
    header.offsets = np.floor(low)
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(finest) - 1e-9))
    crs = earth.known_crs()
    if crs is not None:
        header.add_crs(crs)
    points: Any = laspy.LasData(header)
    points.x, points.y, points.z = xyz.T
    # LAS colours have 16 bits
    points.red, points.green, points.blue = (cloud.rgb.astype(np.uint16) * 257).T
    points.write(str(path))
