"""Calibration: a few real training steps in a process of its own say what they take on this machine.

`python -m infnerf_tiles.pipelines.calibrate` reads settings as JSON from stdin and prints a `Calibration` as JSON.
"""

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import UInt8
from infnerf_tiles.errors import TrainingError
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.node_id import NodeId, RootCube
from infnerf_tiles.kernels import chosen_device
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.process import peak_memory, resident_memory
from infnerf_tiles.settings import Settings, parse_settings
from infnerf_tiles.training.pixels import PixelSet, all_patches
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer

_STEPS, _TIMED = 6, 4
_SLOTS = (8, 12)
_FROZEN = 4
_TIMEOUT = 120.0
_ROOT = RootCube((-8.0, -8.0, -8.0), 16.0)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What training takes here, with the settings' shapes.

    base_bytes: host memory of a process that trains, without what follows. fixed_bytes: state of a training without
    any slot. step_bytes: what a step takes for a moment. slot_bytes, frozen_bytes, tree_bytes: per node slot, per node
    around and per treelet around. device_base_bytes, device_slot_bytes, device_frozen_bytes: the
    same on the CUDA device, 0 where there is none. step_seconds: of one step of `training.samples_per_step` samples.
    """

    base_bytes: int
    fixed_bytes: int
    step_bytes: int
    slot_bytes: int
    frozen_bytes: int
    tree_bytes: int
    device_base_bytes: int
    device_slot_bytes: int
    device_frozen_bytes: int
    step_seconds: float


def calibrate(settings: Settings, threads: int | None = None) -> Calibration:
    """Measure in a fresh process. TrainingError if that fails."""
    request = json.dumps({"settings": settings.model_dump(mode="json"), "threads": threads})
    done = subprocess.run(
        [sys.executable, "-m", "infnerf_tiles.pipelines.calibrate"],
        input=request, capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingError(f"calibration: expected a few training steps to succeed, got: {last}")
    return Calibration(**json.loads(done.stdout.splitlines()[-1]))


def measure(settings: Settings, threads: int | None) -> Calibration:
    """Measure in this process, whose peak memory must not have been higher before."""
    set_threads(threads)
    on_gpu = chosen_device(settings.training.device).type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
    trainers = [_trainer(settings, capacity, 0) for capacity in _SLOTS]
    small, large = (_sizes(trainer) for trainer in trainers)
    with_frozen = _sizes(_trainer(settings, _SLOTS[0], _FROZEN))
    per_slot = {d: (large[d] - small[d]) // (_SLOTS[1] - _SLOTS[0]) for d in ("host", "device")}
    shape = trainers[0].state.shape
    tree = shape.base_bytes
    per_frozen = {d: max(with_frozen[d] - small[d] - (tree if d == "host" else 0), 0) // _FROZEN for d in small}
    held = sum(_sizes(trainer)["host"] for trainer in trainers)
    trainer = trainers[1]
    started = 0.0
    for step in range(_STEPS):
        if step == _STEPS - _TIMED:
            wait()
            started = time.perf_counter()
        trainer.train_step()
    wait()
    seconds = (time.perf_counter() - started) / _TIMED
    resident, peak = resident_memory(), peak_memory()
    device_peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Calibration(
        base_bytes=max((resident or peak) - held, 0),
        fixed_bytes=max(small["host"] - _SLOTS[0] * per_slot["host"], 0),
        step_bytes=max(peak - resident, 0) if resident else 0,
        slot_bytes=per_slot["host"],
        frozen_bytes=per_frozen["host"],
        tree_bytes=tree,
        device_base_bytes=max(device_peak - _SLOTS[1] * per_slot["device"], 0),
        device_slot_bytes=per_slot["device"],
        device_frozen_bytes=per_frozen["device"],
        step_seconds=seconds,
    )


def _trainer(settings: Settings, capacity: int, frozen: int) -> Trainer:
    """A trainer of random colours on a shell inside one treelet."""
    f, o = settings.field, settings.octree
    shape = FieldShape(cells=o.cells, table_size=1 << f.table_log2, features=f.features)
    gsd_root = float(gsd(_ROOT.edge, o.cells, 0))
    camera = Camera("PINHOLE", 128, 96, (120.0, 120.0, 64.0, 48.0))
    cameras = _ring(camera)
    rng = np.random.default_rng(0)
    photos: list[UInt8] = [rng.integers(0, 256, (96, 128, 3)).astype(np.uint8) for _ in range(cameras.num_photos)]
    pixels = PixelSet.gather(
        all_patches(cameras, range(cameras.num_photos)), lambda i: [(photos[i], None), (photos[i][::2, ::2], None)]
    )
    top = NodeId(0, 0, 0, 0)
    keys = np.array([top.key, *(NodeId(1, x, y, z).key for z in (0, 1) for y in (0, 1) for x in (0, 1))][:8], np.int64)
    around = ResidentNodes.none(shape)
    if frozen:
        top = NodeId(1, 1, 1, 1)
        others = [0, *(NodeId(1, x, y, 0).key for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)))]
        keys, around_keys = np.array([top.key], np.int64), np.sort(np.array(others[:frozen], np.int64))
        around = ResidentNodes(
            keys=around_keys,
            treelet=np.zeros(frozen, np.int32),
            tables=np.zeros((frozen, shape.row_length), np.float16),
            occupancy=np.zeros((frozen, shape.occupancy_bytes), np.uint8),
            lambda_max=np.ones(frozen, np.float32),
            top_keys=np.zeros(1, np.int64),
            bases=np.zeros((1, shape.base_length), np.float16),
        )
    device = chosen_device(settings.training.device)
    state = TrainingState(shape, top, np.sort(keys), capacity, around, device=device)
    n = shape.occupancy_cells
    state.start_occupancy(rng.random((len(keys), n, n, n)) < 0.15, 2 * settings.training.occupancy_threshold)
    shared = Shared(
        decoder=Decoder(
            decoder_shape(
                features=f.features, hidden=f.hidden, geometry_features=f.geometry_features,
                density_bias=f.density_bias, gsd_ref=gsd_root, gsd_finest=gsd_root / 8,
            ),
            torch.Generator().manual_seed(0),
        ),
        appearance=Appearance(cameras.num_photos),
        background=Background(f.background),
        trainable=True,
    )  # fmt: skip
    return Trainer(
        frame=Frame(
            root=_ROOT,
            march=MarchSettings(near=0.5, step=settings.training.step_size, gsd_root=gsd_root, lod_bias=0.0),
            max_own_level=top.level + 3, can_go_below=False,
        ),
        state=state, shared=shared, pixels=pixels, cameras=cameras, settings=settings.training, total_rays=1 << 30,
        seed=(0,), grows=False, min_points=8, warm=True,
    )  # fmt: skip


def _ring(camera: Camera) -> PosedCameras:
    """Cameras on a circle that look at the origin."""
    poses = []
    for angle in np.arange(8) * np.pi / 4:
        centre = 5.0 * np.array([np.cos(angle), np.sin(angle), 0.3])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(forward, right), forward, centre], axis=1))
    return PosedCameras((camera,), np.zeros(8, np.int32), np.array(poses))


def _sizes(trainer: Trainer) -> Mapping[str, int]:
    """Bytes of everything that hangs on a trainer's state, moments and evidence, on the host and on the device."""
    sizes = {"host": 0, "device": 0}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                sizes["host" if value.device.type == "cpu" else "device"] += storage.nbytes()
        elif isinstance(value, np.ndarray):
            owner = value if value.base is None else value.base
            if isinstance(owner, np.ndarray) and id(owner) not in seen:
                seen.add(id(owner))
                sizes["host"] += owner.nbytes
        elif depth and isinstance(value, dict):
            for item in value.values():
                visit(item, depth - 1)
        elif depth and isinstance(value, list | tuple):
            for item in value:
                visit(item, depth - 1)
        elif depth and (dataclasses.is_dataclass(value) or hasattr(value, "__dict__")):
            names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else vars(value)
            for name in names:
                visit(getattr(value, name), depth - 1)

    for part in (trainer.state, trainer.moments, trainer.evidence):
        visit(part, 3)
    return sizes


def main() -> None:
    """Read the request, measure, print."""
    request = json.loads(sys.stdin.read())
    importlib.import_module("infnerf_tiles.pipelines.train")  # what a process that trains has in memory
    found = measure(parse_settings(request["settings"]), request["threads"])
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
