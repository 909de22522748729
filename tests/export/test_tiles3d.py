"""The tileset against what 3D Tiles 1.1 and glTF 2.0 demand, and its points against the cloud."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.exported import UTM, placed, renderer_of, scene_of

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.export.cloud import Cloud, collect
from infnerf_tiles.export.tiles3d import write_tileset
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.rendering.renderer import Renderer


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return renderer_of(scene_of())


@pytest.fixture(scope="module")
def cloud(renderer: Renderer) -> Cloud:
    return collect(renderer)


@pytest.fixture(scope="module")
def folder(renderer: Renderer, cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiles") / "out"
    written = write_tileset(place, cloud, renderer)
    assert written.tiles == len(list(place.rglob("*.glb")))
    assert written.bytes == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return place


def problems(document: Any) -> list[str]:
    """What breaks the schemas of tileset, asset, tile, boundingVolume and content of 3D Tiles 1.1 (the properties that
    are used here, each with its type, its length and whether it is required), or a rule of the specification's text:
    `refine` at the root, errors that shrink and boxes that nest downwards."""
    found: list[str] = []

    def number(value: Any, where: str, least: float = -math.inf) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
            found.append(f"{where}: {value!r}")

    def only(value: Any, allowed: set[str], required: set[str], where: str) -> bool:
        if not isinstance(value, dict) or not required <= value.keys() <= allowed:
            found.append(f"{where}: {sorted(value) if isinstance(value, dict) else value!r}")
            return False
        return True

    def numbers(value: Any, length: int, where: str) -> None:
        if not isinstance(value, list) or len(value) != length:
            found.append(f"{where}: {value!r}")
            return
        for entry in value:
            number(entry, where)

    def tile(value: Any, where: str, above: Any) -> None:
        names = {"boundingVolume", "geometricError", "refine", "transform", "content", "children"}
        if not only(value, names, {"boundingVolume", "geometricError"}, where):
            return
        number(value["geometricError"], f"{where}.geometricError", 0.0)
        if only(value["boundingVolume"], {"box"}, {"box"}, f"{where}.boundingVolume"):
            numbers(value["boundingVolume"]["box"], 12, f"{where}.box")
        if "transform" in value:
            numbers(value["transform"], 16, f"{where}.transform")
        if value.get("refine", "ADD") not in ("ADD", "REPLACE") or (above is None and "refine" not in value):
            found.append(f"{where}.refine")
        if "content" in value and only(value["content"], {"uri"}, {"uri"}, f"{where}.content"):
            uri = value["content"]["uri"]
            if not isinstance(uri, str) or uri.startswith("/") or ".." in uri or "\\" in uri:
                found.append(f"{where}.uri: {uri!r}")
            if str(uri).endswith(".json") and "children" in value:
                found.append(f"{where}: a tile with an external tileset has children")
        if above is not None and not found:
            if value["geometricError"] >= above["geometricError"]:
                found.append(f"{where}: error not below the parent's")
            inner, outer = (np.array(t["boundingVolume"]["box"]) for t in (value, above))
            reach = [np.abs(box[3:].reshape(3, 3)).sum(axis=0) for box in (inner, outer)]
            if (np.abs(inner[:3] - outer[:3]) + reach[0] > reach[1] * (1 + 1e-9)).any():
                found.append(f"{where}: box not inside the parent's")
        children = value.get("children", [])
        if "children" in value and (not isinstance(children, list) or not children):
            found.append(f"{where}.children")
        for i, child in enumerate(children):
            tile(child, f"{where}.children[{i}]", value)

    if only(document, {"asset", "geometricError", "root"}, {"asset", "geometricError", "root"}, "tileset"):
        if only(document["asset"], {"version", "generator", "tilesetVersion"}, {"version"}, "asset"):
            found += [] if document["asset"]["version"] == "1.1" else ["asset.version"]
        number(document["geometricError"], "geometricError", 0.0)
        tile(document["root"], "root", None)
    return found


def tiles(folder: Path, name: str = "tileset.json") -> Iterator[dict[str, Any]]:
    """All tiles that a client meets from a tileset file on."""

    def walk(tile: dict[str, Any]) -> Iterator[dict[str, Any]]:
        uri = tile["content"]["uri"]
        if uri.endswith(".json"):
            yield from tiles(folder, uri)
        else:
            yield tile
        for child in tile.get("children", []):
            yield from walk(child)

    yield from walk(json.loads((folder / name).read_text())["root"])


def glb(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    assert size % 4 == 0
    body_size, body_kind = struct.unpack("<I4s", data[20 + size : 28 + size])
    assert body_kind == b"BIN\0"
    assert body_size % 4 == 0
    assert 28 + size + body_size == length
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(xyz float64[n, 3] as a 3D Tiles client places them, linear colours float64[n, 3])."""
    document, body = glb(path)
    position, colour = document["accessors"]
    views = document["bufferViews"]
    assert document["meshes"][0]["primitives"][0]["mode"] == 0
    assert document["buffers"][0]["byteLength"] == sum(view["byteLength"] for view in views)
    at = [view["byteOffset"] for view in views]
    assert all(offset % 4 == 0 for offset in at)
    count = position["count"]
    local = np.frombuffer(body, "<f4", 3 * count, at[0]).reshape(-1, 3).astype(np.float64)
    np.testing.assert_array_equal(local.min(axis=0), position["min"])
    np.testing.assert_array_equal(local.max(axis=0), position["max"])
    assert colour["count"] == count
    assert colour["normalized"] is True
    assert (position["componentType"], colour["componentType"]) == (5126, 5123)
    rgba = np.frombuffer(body, "<u2", 4 * count, at[1]).reshape(-1, 4) / 65535
    assert (rgba[:, 3] == 1).all()
    x, y, z = (local + document["nodes"][0]["translation"]).T
    return np.stack([x, -z, y], axis=1), rgba[:, :3]


def test_every_file_keeps_the_schema(folder: Path) -> None:
    files = sorted(folder.glob("*.json"))
    assert len(files) > 1, "treelets are tilesets of their own"
    for file in files:
        assert problems(json.loads(file.read_text())) == []


@pytest.mark.parametrize(
    "breakage",
    [
        lambda d: d["asset"].update(version="1.0"),
        lambda d: d.pop("geometricError"),
        lambda d: d["root"].pop("refine"),
        lambda d: d["root"]["boundingVolume"]["box"].pop(),
        lambda d: d["root"].update(children=[]),
        lambda d: d["root"]["children"][0].update(geometricError=1e9),
        lambda d: d["root"]["children"][0]["boundingVolume"]["box"].__setitem__(0, 1e6),
        lambda d: d["root"]["content"].update(uri="../secret.glb"),
        lambda d: d["root"].update(colour="red"),
    ],
)
def test_the_check_sees_what_is_wrong(folder: Path, breakage: Any) -> None:
    document = json.loads((folder / "tileset.json").read_text())
    breakage(document)
    assert problems(document)


def test_the_octree_is_the_tileset(folder: Path, renderer: Renderer, cloud: Cloud) -> None:
    scene = renderer.scene
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for tile in tiles(folder):
        level, place = tile["content"]["uri"].split("/")[1:]
        node = NodeId.parse(f"{level}/{place.removesuffix('.glb')}")
        assert tile["geometricError"] == pytest.approx(scene.gsd_root / 2**node.level)
        box = scene.header.root.node_box(node)
        centre, half = np.array(tile["boundingVolume"]["box"][:3]), tile["boundingVolume"]["box"][3]
        np.testing.assert_allclose([centre - half, centre + half], [box.lo, box.hi])
        xyz, colours = points(folder / tile["content"]["uri"])
        assert (xyz >= np.array(box.lo) - 1e-4).all()
        assert (xyz <= np.array(box.hi) + 1e-4).all()
        seen[node.key] = xyz, colours
    assert len(seen) == len(list(folder.rglob("*.glb")))
    # leaves hold the cloud itself, to float32
    leaf = max(seen)
    own = cloud.subset(cloud.keys == leaf)
    xyz, colours = seen[leaf]
    assert len(xyz) == own.num_points > 0
    order, expected = np.lexsort(xyz.T), np.lexsort(own.xyz.T)
    np.testing.assert_allclose(xyz[order], own.xyz[expected], atol=1e-4)
    srgb = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    assert np.abs(srgb[order] * 255 - own.rgb[expected]).max() < 0.6
    # every tile's parent is there, and shows the same places with fewer points
    for key in seen:
        assert key == 0 or NodeId.from_key(key).parent.key in seen
    assert len(seen[0][0]) < cloud.num_points


def test_the_root_stands_on_the_globe_or_level(folder: Path, renderer: Renderer, cloud: Cloud, tmp_path: Path) -> None:
    matrix = np.array(json.loads((folder / "tileset.json").read_text())["root"]["transform"]).reshape(4, 4).T
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    pyproj = pytest.importorskip("pyproj")
    on_earth = renderer_of(placed(renderer.scene, UTM))
    write_tileset(tmp_path / "earth", cloud, on_earth)
    document = json.loads((tmp_path / "earth" / "tileset.json").read_text())
    assert problems(document) == []
    matrix = np.array(document["root"]["transform"]).reshape(4, 4).T
    globe = matrix[:3, :3] @ cloud.xyz[0] + matrix[:3, 3]
    transformer = pyproj.Transformer.from_crs(pyproj.CRS(32634).to_3d(), 4978, always_xy=True)
    expected = transformer.transform(*(cloud.xyz[0] + np.array(UTM["origin"])))
    assert np.linalg.norm(globe - expected) < 0.01


def test_a_folder_with_files_is_left_alone(renderer: Renderer, cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="expected a new or empty folder"):
        write_tileset(tmp_path, cloud, renderer)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
