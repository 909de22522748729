"""Where on Earth the world frame lies: the optional geo.json of a data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import Float64, check_shape
from infnerf_tiles.data.json_file import read_json
from infnerf_tiles.errors import DatasetError

GEO_FILE = "geo.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Georeference:
    """crs: such as "EPSG:32634". origin: float64 (east, north, height) in that CRS that is added to world coordinates.
    model_to_crs: float64[4, 4] applied to world coordinates before the origin is added, None for the identity."""

    crs: str
    origin: tuple[float, float, float]
    model_to_crs: Float64 | None = None

    def __post_init__(self) -> None:
        if self.model_to_crs is not None:
            check_shape("model_to_crs", self.model_to_crs, (4, 4))


def read_georeference(folder: Path) -> Georeference | None:
    """The geo.json of a data set's folder: {"crs": "EPSG:...", "origin": [E, N, h], "model_to_crs": 4x4 or absent}.

    None if there is none. DatasetError naming the key if one is wrong.
    """
    path = folder / GEO_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected an object with crs and origin, got a {type(content).__name__}")
    unknown = sorted(content.keys() - {"crs", "origin", "model_to_crs"})
    if unknown:
        raise DatasetError(f"{path}: expected the keys crs, origin and model_to_crs, got also {', '.join(unknown)}")
    crs = content.get("crs")
    if not isinstance(crs, str) or not crs.strip():
        raise DatasetError(f'{path}: crs: expected a text such as "EPSG:32634", got {crs!r}')
    east, north, height = _numbers(path, "origin", content.get("origin"), (3,)).tolist()
    matrix = content.get("model_to_crs")
    return Georeference(
        crs=crs,
        origin=(east, north, height),
        model_to_crs=None if matrix is None else _numbers(path, "model_to_crs", matrix, (4, 4)),
    )


def crs_problem(crs: str) -> str | None:
    """Why a coordinate reference system cannot be one, or None: what pyproj says or, without it, what the text is like
    (AUTHORITY:CODE, a PROJ string, WKT or PROJJSON)."""
    try:
        import pyproj
    except ImportError:
        known = any(mark in crs for mark in (":", "+proj", "["))
        return None if known else "it is not like EPSG:32634"
    try:
        pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        return str(error)
    return None


def _numbers(path: Path, key: str, value: object, shape: tuple[int, ...]) -> Float64:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.shape != shape or not np.isfinite(array).all():
        size = "x".join(map(str, shape))
        raise DatasetError(f"{path}: {key}: expected {size} finite numbers, got {value!r:.80}")
    return array
