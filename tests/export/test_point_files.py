"""Clouds as PLY, LAS and LAZ, read back by other readers."""

from pathlib import Path

import numpy as np
import pytest
from export.exported import UTM, placed, scene_of

from infnerf_tiles.data.ply import read_ply_points
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.export.cloud import Cloud
from infnerf_tiles.export.earth import Earth
from infnerf_tiles.export.point_files import write_points

RNG = np.random.default_rng(0)
CLOUD = Cloud(
    xyz=RNG.normal(size=(500, 3)) * 40,
    rgb=RNG.integers(0, 256, (500, 3)).astype(np.uint8),
    keys=np.zeros(500, np.int64),
)
ORIGIN = np.array(UTM["origin"])


@pytest.fixture(scope="module")
def earth() -> Earth:
    return Earth.of(placed(scene_of(), UTM).header)


def test_ply_keeps_every_digit_of_map_coordinates(earth: Earth, tmp_path: Path) -> None:
    write_points(tmp_path / "a" / "cloud.ply", CLOUD, earth, 0.001)
    points = read_ply_points(tmp_path / "a" / "cloud.ply")
    assert np.array_equal(points.xyz, CLOUD.xyz + ORIGIN)
    assert np.array_equal(points.rgb, CLOUD.rgb)
    assert b"comment crs EPSG:32634" in (tmp_path / "a" / "cloud.ply").read_bytes()[:300]


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_reads_back_with_its_crs(earth: Earth, tmp_path: Path, suffix: str) -> None:
    laspy = pytest.importorskip("laspy")
    pyproj = pytest.importorskip("pyproj")
    path = tmp_path / f"cloud{suffix}"
    write_points(path, CLOUD, earth, 0.001)
    las = laspy.read(path)
    assert las.header.parse_crs() == pyproj.CRS.from_epsg(32634)
    assert np.abs(np.asarray(las.xyz) - (CLOUD.xyz + ORIGIN)).max() <= 0.0006
    colours = np.stack([las.red, las.green, las.blue], axis=1)
    assert np.array_equal(colours >> 8, CLOUD.rgb)
    if suffix == ".laz":
        write_points(tmp_path / "cloud.las", CLOUD, earth, 0.001)
        assert path.stat().st_size < (tmp_path / "cloud.las").stat().st_size


def test_a_cloud_from_nowhere_has_no_crs(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    write_points(tmp_path / "c.las", CLOUD, Earth.of(scene_of().header), 1e-4)
    las = laspy.read(tmp_path / "c.las")
    assert las.header.parse_crs() is None
    assert np.abs(np.asarray(las.xyz) - CLOUD.xyz).max() <= 0.6e-4


def test_a_wide_cloud_still_fits(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    wide = Cloud(xyz=CLOUD.xyz * 1e6, rgb=CLOUD.rgb, keys=CLOUD.keys)
    write_points(tmp_path / "w.las", wide, Earth.of(scene_of().header), 1e-6)
    las = laspy.read(tmp_path / "w.las")
    assert np.abs(np.asarray(las.xyz) - wide.xyz).max() <= 0.51  # whole metres for 50,000 km


def test_what_cannot_be_written_is_told(earth: Earth, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ending in \.ply, \.las, \.laz"):
        write_points(tmp_path / "cloud.xyz", CLOUD, earth, 0.001)
    pytest.importorskip("pyproj")
    unknown = Earth(crs="EPSG:999999", matrix=np.eye(4))
    with pytest.raises(SettingsError, match="expected a CRS that is known"):
        write_points(tmp_path / "cloud.las", CLOUD, unknown, 0.001)
    assert not list(tmp_path.iterdir())


def test_the_globe_is_met_as_well_as_a_plane_can() -> None:
    pyproj = pytest.importorskip("pyproj")
    turned = [[0.0, -2.0, 0.0, 5.0], [2.0, 0.0, 0.0, 6.0], [0.0, 0.0, 2.0, 7.0], [0.0, 0.0, 0.0, 1.0]]
    earth = Earth.of(placed(scene_of(), {**UTM, "model_to_crs": turned}).header)
    np.testing.assert_allclose(earth.to_crs(np.array([[1.0, 0.0, 0.0]])) - ORIGIN, [[5.0, 8.0, 7.0]])
    centre = np.array([30.0, -20.0, 4.0])
    matrix = earth.to_globe(centre)
    assert matrix is not None
    transformer = pyproj.Transformer.from_crs("EPSG:32634", "EPSG:4326", always_xy=True)
    back = pyproj.Transformer.from_crs(4978, 4979, always_xy=True)
    for offset, tolerance in ((0.0, 1e-6), (100.0, 2e-2)):
        point = centre + offset
        lon, lat, height = back.transform(*(matrix[:3, :3] @ point + matrix[:3, 3]))
        east, north, up = earth.to_crs(point[None])[0]
        expected = transformer.transform(east, north)
        assert np.hypot((lon - expected[0]) * 68_000, (lat - expected[1]) * 111_000) < max(tolerance, 1e-4)
        assert abs(height - up) < max(tolerance, 1e-4)
