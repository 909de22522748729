"""A 3D Tiles 1.1 tileset of GLB point tiles: the octree is the tileset, a node's GSD its geometric error.

`tileset.json` holds the treelet at the top; every treelet below is a tileset of its own that the one above names, so
that no file grows with the scene. A tile replaces its parent. Coordinates in tiles are those of the world, relative to
the node's centre; the root's transform takes them to the globe where the CRS is known, else to a level frame.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import Float64, UInt8
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.export.cloud import Cloud, joined, thinned_to_parents
from infnerf_tiles.export.earth import Earth
from infnerf_tiles.geometry.aabb import Aabb
from infnerf_tiles.geometry.node_id import NodeId, key_levels
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene, content_centre
from infnerf_tiles.rendering.vantage import world_up

Progress = Callable[[int, int], None]
"""(tiles written, tiles in all as far as known)"""
_GENERATOR = "infnerf-tiles"
_FLOAT, _USHORT, _ARRAY_BUFFER, _POINTS = 5126, 5123, 34962, 0


@dataclass(frozen=True, kw_only=True)
class Tileset:
    """What was written. tiles: GLB files. points: in all of them."""

    tiles: int
    points: int
    bytes: int


def write_tileset(folder: Path, cloud: Cloud, renderer: Renderer, progress: Progress | None = None) -> Tileset:
    """Write the cloud as a tileset into a new or empty folder; `tileset.json` comes last.

    SettingsError if the folder holds something, or the CRS is not known here.
    """
    scene = renderer.scene
    transform = _transform(scene)
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"{folder}: expected a new or empty folder for the tileset, got one with files")
    keys: set[int] = set()
    num_points = num_bytes = 0
    for level_cloud in _levels(cloud, renderer):
        starts = np.flatnonzero(np.diff(level_cloud.keys, prepend=-1))
        for first, last in zip(starts, [*starts[1:], level_cloud.num_points], strict=True):
            node = NodeId.from_key(int(level_cloud.keys[first]))
            box = scene.header.root.node_box(node)
            data = glb_points(level_cloud.xyz[first:last], level_cloud.rgb[first:last], _centre(box))
            path = folder / _content(node)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            keys.add(node.key)
            num_points += int(last - first)
            num_bytes += len(data)
            if progress is not None:
                progress(len(keys), max(len(keys), scene.octree.num_nodes))
    if not keys:
        raise SettingsError("export: expected surfaces in the photos' views, found none; train the scene further")
    tops = {int(key) for key in scene.index.root_keys} & keys
    for top in sorted(tops, reverse=True):  # the root, and with it the name that clients open, last
        document = _document(scene, NodeId.from_key(top), keys, tops)
        if top == 0 and transform is not None:
            document["root"]["transform"] = transform.T.ravel().tolist()
        text = json.dumps(document, allow_nan=False)
        (folder / _tileset_name(NodeId.from_key(top))).write_text(text, "utf-8")
        num_bytes += len(text)
    return Tileset(tiles=len(keys), points=num_points, bytes=num_bytes)


def glb_points(xyz: Float64, rgb: UInt8, centre: Float64) -> bytes:
    """A GLB file of points float64[n, 3] with sRGB colours uint8[n, 3], stored relative to `centre`.

    glTF's y is up, so that world (x, y, z) becomes (x, z, -y); clients of 3D Tiles turn it back. Its vertex colours are
    linear light.
    """
    local = _y_up(xyz - centre).astype("<f4")
    colours = np.full((len(xyz), 4), 65535, "<u2")
    colours[:, :3] = np.rint(_linear(rgb) * 65535)
    body = local.tobytes() + colours.tobytes()
    views = [
        {"buffer": 0, "byteOffset": 0, "byteLength": local.nbytes, "target": _ARRAY_BUFFER},
        {"buffer": 0, "byteOffset": local.nbytes, "byteLength": colours.nbytes, "target": _ARRAY_BUFFER},
    ]
    document = {
        "asset": {"version": "2.0", "generator": _GENERATOR},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": _y_up(centre[None])[0].tolist()}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS}]}],
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": views,
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(xyz),
                "type": "VEC3",
                "min": local.min(axis=0).tolist(),
                "max": local.max(axis=0).tolist(),
            },
            {"bufferView": 1, "componentType": _USHORT, "normalized": True, "count": len(xyz), "type": "VEC4"},
        ],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body += b"\0" * (-len(body) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def _levels(cloud: Cloud, renderer: Renderer) -> Iterator[Cloud]:
    """The points of every level's nodes, finest first: the level's own and those below it, thinned; by node."""
    levels = key_levels(cloud.keys)
    below: Cloud | None = None
    for level in range(int(levels.max(initial=0)), -1, -1):
        here = cloud.subset(levels == level)
        if below is not None:
            here = joined([here, thinned_to_parents(below, renderer)])
        below = here.subset(np.argsort(here.keys, kind="stable"))
        if below.num_points:
            yield below


def _document(scene: Scene, top: NodeId, keys: set[int], tops: set[int]) -> dict[str, Any]:
    gsd = scene.gsd_root / 2**top.level
    return {
        "asset": {"version": "1.1", "generator": _GENERATOR},
        # the error of drawing nothing at all
        "geometricError": gsd * scene.header.cells,
        "root": _tile(scene, top, keys, tops - {top.key}),
    }


def _tile(scene: Scene, node: NodeId, keys: set[int], tops: set[int]) -> dict[str, Any]:
    box = scene.header.root.node_box(node)
    half = scene.header.root.node_edge(node.level) / 2
    tile: dict[str, Any] = {
        "boundingVolume": {"box": [*_centre(box).tolist(), *(np.eye(3) * half).ravel().tolist()]},
        "geometricError": scene.gsd_root / 2**node.level,
        "refine": "REPLACE",
    }
    if node.key in tops:
        return tile | {"content": {"uri": _tileset_name(node)}}
    tile["content"] = {"uri": _content(node)}
    children = [_tile(scene, child, keys, tops) for child in node.children() if child.key in keys]
    return tile | ({"children": children} if children else {})


def _transform(scene: Scene) -> Float64 | None:
    """float64[4, 4] from world coordinates to the globe or, without a CRS, to a level frame around the content."""
    centre = content_centre(scene)
    globe = Earth.of(scene.header).to_globe(centre)
    if globe is not None:
        return globe
    up = world_up(scene.cameras)
    east = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    if abs(up[2]) > 1 - 1e-9:
        east = np.array([1.0, 0.0, 0.0])
    east /= np.linalg.norm(east)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([east, np.cross(up, east), up])
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix


def _centre(box: Aabb) -> Float64:
    centre: Float64 = (np.asarray(box.lo) + np.asarray(box.hi)) / 2
    return centre


def _content(node: NodeId) -> str:
    return f"points/L{node.level}/{node.x}-{node.y}-{node.z}.glb"


def _tileset_name(node: NodeId) -> str:
    return "tileset.json" if node.key == 0 else f"L{node.level}-{node.x}-{node.y}-{node.z}.json"


def _y_up(xyz: Float64) -> Float64:
    return np.stack([xyz[:, 0], xyz[:, 2], -xyz[:, 1]], axis=1)


def _linear(rgb: UInt8) -> Float64:
    """sRGB to linear light, [0, 1] (IEC 61966-2-1)."""
    value = rgb / 255.0
    linear: Float64 = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear
