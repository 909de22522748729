"""Data sets and scenes that train in a second, for the tests of training and of the pipelines."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from infnerf_tiles.pipelines.build import build
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Float64, Int64, UInt8
from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.records import points_without_tracks
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.node_id import NodeId, RootCube
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.settings import Settings, load_settings
from infnerf_tiles.store.journal import read_all
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset
from infnerf_tiles.training.context import Context, scene_dataset
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.pixels import PixelSet, all_patches
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer

TINY = (
    "octree.cells=16",
    "octree.treelet_height=2",
    "octree.max_level=2",
    "octree.min_points=10",
    "field.table_log2=9",
    "field.features=4",
    "field.hidden=16",
    "training.passes=0.4",
    "training.occupancy_threshold=1e-4",
    "field.density_bias=2.0",
    "training.samples_per_step=1024",
    "training.samples_per_ray=16",
    "training.precision='float32'",
)
"""Settings with which a scene of several bands trains in a second or two."""


def tiny(*more: str) -> Settings:
    """TINY, changed by `more`."""
    return load_settings(None, [*TINY, *more])


def write_city(folder: Path, *, num_photos: int = 9, size: tuple[int, int] = (64, 48)) -> Path:
    """A city of one block, seen in a few thumbnails; one photo in eight is held out."""
    write_city_dataset(folder, blocks=(1, 1), num_photos=num_photos, size=size, supersample=1, num_points=600)
    return folder


def build_scene(data: Path, scene: Path, settings: Settings | None = None, **options: Any) -> str:
    """Build a scene; returns its place."""
    build(data, str(scene), settings or tiny(), **options)
    return str(scene)


def copy_scene(scene: str, to: Path) -> str:
    """Another copy of a scene."""
    shutil.copytree(scene, to)
    return str(to)


def open_context(store: SceneStore, data: Path, settings: Settings) -> Context:
    """What a training task opens."""
    return Context(store, scene_dataset(settings, data), settings)


def without_points(data: Path, folder: Path) -> Path:
    """The same photos and poses as transforms.json, which has no points."""
    photos = read_dataset(data)
    (folder / "images").mkdir(parents=True)
    frames = []
    flip = np.diag([1.0, -1.0, -1.0, 1.0])  # the file's cameras look along -z with y up
    for i, name in enumerate(photos.names):
        camera = photos.cameras.camera(i)
        shutil.copy(photos.paths[i], folder / "images" / Path(name).name)
        pose = np.eye(4)
        pose[:3] = photos.cameras.camera_to_world[i]
        frames.append(
            {
                "file_path": f"images/{Path(name).name}", "transform_matrix": (pose @ flip).tolist(),
                "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy,
                "w": camera.width, "h": camera.height,
            }
        )  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", "frames": frames}))
    return folder


def untracked(photos: PosedPhotos) -> PosedPhotos:
    """The same photos and points; nothing says who saw a point."""
    assert photos.points is not None
    return replace(photos, points=points_without_tracks(photos.points.xyz, photos.points.rgb))


def some_photos(
    photos: PosedPhotos, rows: Int64, folder: Path, *, poses: Float64 | None = None, xyz: Float64 | None = None
) -> Path:
    """A COLMAP data set of some of the photos, as a smaller collection would have given it; poses float64[n, 3, 4] of
    all photos and xyz float64[m, 3] of the points: where they are to be said to be."""
    few = photos.select(np.asarray(rows, np.int64), photos.is_test[rows])
    assert few.points is not None
    for name, path in zip(few.names, few.paths, strict=True):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / "images" / name)
    cameras, points = few.cameras, few.points
    if poses is not None:
        cameras = PosedCameras(cameras.cameras, cameras.camera_index, poses[rows])
    if xyz is not None:
        points = replace(points, xyz=xyz)
    write_colmap(folder / "sparse" / "0", names=few.names, cameras=cameras, points=points)
    return folder


def learned(scene: str) -> dict[str, AnyArray]:
    """Everything that training left in a scene, by node and treelet, wherever its rows lie."""
    out: dict[str, AnyArray] = {}
    with SceneStore.open(scene) as store:
        index = store.read_index()
        for k in np.flatnonzero(index.states == 1).tolist():
            node = str(NodeId.from_key(int(index.keys[k])))
            out[f"{node} table"] = store.read_node(int(index.slots[k]))
            out[f"{node} bits"] = store.read_occupancy(int(index.slots[k]))
            out[f"{node} lambda"] = index.lambda_max[k]
            out[f"{node} treelet"] = index.root_keys[index.treelets[k]]
        for r in np.flatnonzero(index.treelet_states == 1).tolist():
            out[f"{NodeId.from_key(int(index.root_keys[r]))} base"] = store.read_base(int(index.base_slots[r]))
        out["planned"] = index.keys[index.states == 0]
        for group in ("decoder", "appearance", "background"):
            if store.has_small(group):
                out |= {f"{group} {name}": array for name, array in store.read_small(group).items()}  # type: ignore[arg-type]
        out["records"] = np.array([r.treelet for r in read_all(store)])
    return out


def differences(a: dict[str, AnyArray], b: dict[str, AnyArray]) -> list[str]:
    """Names of what is not bit-equal or missing on one side."""
    names = sorted(a.keys() | b.keys())
    return [n for n in names if n not in a or n not in b or not np.array_equal(a[n], b[n])]


def state_arrays(trainer: Trainer) -> dict[str, AnyArray]:
    """All arrays of a trainer that a step changes."""
    state, moments = trainer.state, trainer.moments
    parts: dict[str, AnyArray | Tensor] = {
        "keys": state.keys, "tables": state.tables, "dense": state.dense, "ema": state.ema,
        "occupancy": state.occupancy, "any": state.arena.any_occupied, "blocks": state.arena.blocks,
        "children": state.arena.children, "first_tables": moments.first_tables,
        "second_tables": moments.second_tables, "first_dense": moments.first_dense,
        "second_dense": moments.second_dense, "seen": trainer.evidence.seen,
        "count": trainer.evidence.count, "photos": trainer.evidence.photos,
        "reached": trainer.evidence.reached,
        "counters": np.array(list(vars(trainer.work.counters).values())),
    }  # fmt: skip
    for k, parameter in enumerate(trainer.shared.parameters()):
        parts[f"shared {k}"] = parameter
    return {
        name: part.copy() if isinstance(part, np.ndarray) else part.detach().cpu().numpy().copy()
        for name, part in parts.items()
    }


# --- without a store: one camera ring around a coloured ball ------------------------------------------------------

SHAPE = FieldShape(cells=16, table_size=1 << 9, features=4)
TOP = NodeId(0, 0, 0, 0)
ROOT = RootCube((-8.0, -8.0, -8.0), 16.0)
CAMERA = Camera("PINHOLE", 32, 32, (40.0, 40.0, 16.0, 16.0))


def ring(count: int = 8, distance: float = 5.0) -> PosedCameras:
    """Cameras on a circle that look at the origin."""
    poses = []
    for angle in np.arange(count) * 2 * np.pi / count:
        centre = distance * np.array([np.cos(angle), np.sin(angle), 0.3])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(forward, right), forward, centre], axis=1))
    return PosedCameras((CAMERA,), np.zeros(count, np.int32), np.array(poses))


def ball_photo(cameras: PosedCameras, photo: int) -> UInt8:
    """A ball of radius 1, coloured by its surface's place, before a grey wall."""
    y, x = np.meshgrid(np.arange(CAMERA.height) + 0.5, np.arange(CAMERA.width) + 0.5, indexing="ij")
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    origins, directions = cameras.rays(np.full(len(xy), photo), xy)
    b = (origins * directions).sum(axis=1)
    inside = b * b - (origins * origins).sum(axis=1) + 1.0
    surface: Float64 = origins + (-b - np.sqrt(np.maximum(inside, 0.0)))[:, None] * directions
    rgb = np.where((inside > 0)[:, None], 0.5 + 0.45 * np.sin(3.0 * surface), 0.4)
    return np.asarray((rgb * 255).round(), np.uint8).reshape(CAMERA.height, CAMERA.width, 3)


def frame(max_own_level: int = 2, *, can_go_below: bool = False, lod_bias: float = 0.0) -> Frame:
    """The constants of a scene around the ball."""
    gsd_root = float(gsd(ROOT.edge, SHAPE.cells, 0))
    march = MarchSettings(near=0.5, step=1.0, gsd_root=gsd_root, lod_bias=lod_bias)
    return Frame(root=ROOT, march=march, max_own_level=max_own_level, can_go_below=can_go_below)


def new_shared(num_photos: int, *, trainable: bool = True, seed: int = 0) -> Shared:
    """A small decoder and what goes with it."""
    gsd_root = float(gsd(ROOT.edge, SHAPE.cells, 0))
    shape = decoder_shape(
        features=SHAPE.features, hidden=16, geometry_features=7, density_bias=3.0, gsd_ref=gsd_root,
        gsd_finest=gsd_root / 8,
    )  # fmt: skip
    return Shared(
        decoder=Decoder(shape, torch.Generator().manual_seed(seed)),
        appearance=Appearance(num_photos),
        background=Background("sh"),
        trainable=trainable,
    )


def ball_trainer(
    keys: Int64,
    *,
    top: NodeId = TOP,
    frozen: ResidentNodes | None = None,
    shared: Shared | None = None,
    settings: Settings | None = None,
    total_rays: int = 4000,
    grows: bool = False,
    room: int = 8,
    frame_: Frame | None = None,
    device: str = "cpu",
    on_device: bool = False,
    depth: DepthTargets | None = None,
    warm: bool = True,
) -> Trainer:
    """A trainer of the ball with own nodes `keys`, everything occupied; `on_device`: by steps in fixed buffers."""
    cameras = ring()
    photos = {i: ball_photo(cameras, i) for i in range(cameras.num_photos)}
    pixels = PixelSet.gather(all_patches(cameras, list(photos)), lambda i: [(photos[i], None)])
    state = TrainingState(
        SHAPE, top, keys, len(keys) + room, frozen or ResidentNodes.none(SHAPE),
        device=torch.device(device), copies=on_device or None,
    )  # fmt: skip
    o = SHAPE.occupancy_cells
    state.start_occupancy(np.ones((len(keys), o, o, o), np.bool_), 0.02)
    return Trainer(
        frame=frame_ or frame(),
        state=state,
        shared=shared or new_shared(cameras.num_photos),
        pixels=pixels,
        cameras=cameras,
        settings=(settings or tiny()).training,
        total_rays=total_rays,
        seed=(7, top.key, 1),
        grows=grows,
        min_points=4,
        warm=warm,
        depth=depth,
    )


def ball_keys(depth: int) -> Int64:
    """Root and, down to `depth`, the eight nodes around the origin at each level."""
    keys = [0]
    for level in range(1, depth + 1):
        half = 1 << (level - 1)
        near = [half - 1, half] if level > 1 else [0, 1]
        keys += [NodeId(level, x, y, z).key for x in near for y in near for z in near]
    return np.array(sorted(keys), np.int64)


def photos_of(data: Path) -> PosedPhotos:
    """The data set as it is read."""
    return read_dataset(data)
