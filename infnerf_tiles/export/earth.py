"""From world coordinates to the scene's CRS, and on to the globe."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.store.schema import SceneHeader

_STEP = 10.0  # CRS units, over which axes are measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Earth:
    """Where a scene lies. crs: such as "EPSG:32634", None if unknown. matrix: float64[4, 4], world to CRS."""

    crs: str | None
    matrix: Float64

    @classmethod
    def of(cls, header: SceneHeader) -> Self:
        """From what the data set's geo.json said; without one, CRS coordinates are world coordinates."""
        facts = header.georeference
        matrix = np.eye(4)
        if facts is None:
            return cls(crs=None, matrix=matrix)
        if facts.get("model_to_crs") is not None:
            matrix = np.array(facts["model_to_crs"], np.float64)
        matrix[:3, 3] += np.array(facts["origin"], np.float64)
        return cls(crs=str(facts["crs"]), matrix=matrix)

    def to_crs(self, points: Float64) -> Float64:
        """float64[n, 3], world to CRS (or world, where that is unknown)."""
        moved: Float64 = points @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return moved

    def known_crs(self) -> Any:
        """The CRS as pyproj knows it, None if unknown. SettingsError if pyproj is missing or does not know it."""
        if self.crs is None:
            return None
        try:
            import pyproj
        except ImportError as error:
            raise SettingsError(
                "export: expected the library pyproj, which is not installed; pip install 'infnerf-tiles[geo]'"
            ) from error
        try:
            return pyproj.CRS.from_user_input(self.crs)
        except pyproj.exceptions.CRSError as error:
            raise SettingsError(
                f"export: expected a CRS that is known, got {self.crs!r} ({error}); build the scene with another --crs"
            ) from error

    def to_globe(self, centre: Float64) -> Float64 | None:
        """float64[4, 4], world to Earth-centred, Earth-fixed metres (EPSG:4978), exact at float64[3] `centre` (world)
        and linear around it (a plane: 1 km away it is 8 cm off the globe, 10 km away 8 m); None without a CRS.

        Heights count as ellipsoidal: no geoid is applied. SettingsError as of `known_crs`.
        """
        crs = self.known_crs()
        if crs is None:
            return None
        import pyproj

        transformer = pyproj.Transformer.from_crs(crs.to_3d(), pyproj.CRS.from_epsg(4978), always_xy=True)
        here = self.to_crs(centre[None])[0]
        steps = np.concatenate([here[None], here + _STEP * np.eye(3), here - _STEP * np.eye(3)])
        globe = np.stack(transformer.transform(*steps.T), axis=1)
        if not np.isfinite(globe).all():
            raise SettingsError(f"export: expected the scene within {self.crs}, got coordinates {here} outside it")
        linear = (globe[1:4] - globe[4:7]).T / (2 * _STEP)
        matrix = np.eye(4)
        matrix[:3, :3] = linear @ self.matrix[:3, :3]
        matrix[:3, 3] = globe[0] - matrix[:3, :3] @ centre
        return matrix
