"""A whole training step: the real trainer on a ball before a grey wall."""

import time
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from infnerf_tiles.arrays import Bool, Int64, UInt8
from infnerf_tiles.data.pyramid import num_pyramid_levels, pyramid
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.node_id import NodeId, RootCube, decode_keys, encode_keys
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.settings import Settings, load_settings
from infnerf_tiles.training.pixels import PixelSet, all_patches
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer
from tests.bench.measure import Bench, Case, Result

_ROOT = RootCube((-2.0, -2.0, -2.0), 4.0)
_SHELL = 1.5
"""Half the thickness of what is occupied around the ball, in cells."""


def training_step(bench: Bench) -> list[Result]:
    """The default field: 100 nodes on the processor, with the default number of samples a step, 2^16 and 2^18; N 128,
    T 2^16, 800 nodes and 2^19 samples a step on a GPU."""
    if bench.on_gpu:
        wide = ["octree.cells=128", "field.table_log2=16", "training.samples_per_step=524288"]
        return [_step(bench, "training step", wide, nodes=800, depth=4)]
    results = [_step(bench, "training step", [], nodes=100, depth=3)]
    if not bench.quick:
        for log2 in (16, 18):
            more = [f"training.samples_per_step={1 << log2}"]
            results.append(_step(bench, f"training step of 2^{log2}", more, nodes=100, depth=3))
    return results


def _step(bench: Bench, name: str, more: list[str], *, nodes: int, depth: int) -> Result:
    trainer = ball(bench.device, load_settings(None, more), nodes, depth, photos=4 if bench.quick else 12)
    warm, steps = (20, 100) if bench.on_gpu else (3, 4 if bench.quick else 20)
    for _ in range(warm):
        trainer.train_step()
    begin_samples = _samples(trainer)
    bench.sync()
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    bench.sync()
    seconds = time.perf_counter() - begin
    samples = _samples(trainer) - begin_samples
    result = Result(
        bench=name, items=samples / steps, unit="samples",
        ours=Case(
            name="trainer", seconds=seconds / steps,
            note=f"{trainer.state.num_own} nodes, {samples / steps:.0f} samples a step",
        ),
    )  # fmt: skip
    result.add("torch twin of the step", None, "skipped: the twin marches ray by ray in Python; see the kernels")
    if bench.on_gpu:
        result.add("kernels alone", *_busy(bench, trainer))
    return result


def _samples(trainer: Trainer) -> int:
    """Samples shaded so far, exactly."""
    settle = getattr(getattr(trainer, "stepper", None), "settle", None)
    if settle is not None:
        settle()
    return trainer.samples_done


def _busy(bench: Bench, trainer: Trainer, steps: int = 10) -> tuple[float | None, str]:
    """Seconds a step that the GPU is busy, and the kernels that take most of them."""
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(steps):
                trainer.train_step()
            bench.sync()
    except RuntimeError as error:  # no profiling library, or none allowed
        return None, f"skipped: {str(error).splitlines()[0][:80]}"
    rows = [(e.key, _device_microseconds(e)) for e in trace.key_averages()]
    total = sum(us for _, us in rows)
    rows.sort(key=lambda row: -row[1])
    top = ", ".join(f"{name[:40]} {us / steps / 1e3:.3f} ms" for name, us in rows[:14])
    return total / steps / 1e6, top


def _device_microseconds(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0.0) or getattr(event, "self_cuda_time_total", 0.0))


def ball(device: torch.device, settings: Settings, nodes: int, depth: int, *, photos: int) -> Trainer:
    """A trainer of at most `nodes` nodes around the surface of a ball of radius 1, the coarsest ones first."""
    shape = FieldShape(
        cells=settings.octree.cells, table_size=1 << settings.field.table_log2, features=settings.field.features
    )
    keys = _shell_keys(depth)[:nodes]
    cameras = _cameras(photos, 1024 if device.type == "cuda" else 256)
    levels = num_pyramid_levels(cameras.cameras[0].width, cameras.cameras[0].height)
    pixels = PixelSet.gather(
        all_patches(cameras, list(range(photos))),
        lambda i: [(image, None) for image in pyramid(_photo(cameras, i), levels)],
    )
    where: dict[str, Any] = {} if device.type == "cpu" else {"device": device}
    state = TrainingState(shape, NodeId(0, 0, 0, 0), keys, len(keys), ResidentNodes.none(shape), **where)
    state.start_occupancy(_shell_cells(keys, shape.occupancy_cells), 1.0)
    gsd_root = float(gsd(_ROOT.edge, shape.cells, 0))
    finest = gsd_root / 2**depth
    shared = Shared(
        decoder=Decoder(
            decoder_shape(
                features=shape.features, hidden=settings.field.hidden,
                geometry_features=settings.field.geometry_features, density_bias=settings.field.density_bias,
                gsd_ref=gsd_root, gsd_finest=finest,
            ),
            torch.Generator().manual_seed(0),
        ),
        appearance=Appearance(photos),
        background=Background("sh"),
        trainable=True,
    )  # fmt: skip
    lattice = MarchSettings(near=0.5, step=settings.training.step_size, gsd_root=gsd_root, lod_bias=0.0)
    return Trainer(
        frame=Frame(root=_ROOT, march=lattice, max_own_level=depth, can_go_below=False),
        state=state,
        shared=shared,
        pixels=pixels,
        cameras=cameras,
        settings=settings.training,
        total_rays=1 << 40,
        seed=(1, 2, 3),
        grows=False,
        min_points=8,
        warm=True,
    )


def _shell_keys(depth: int) -> Int64:
    keys = []
    for level in range(depth + 1):
        n = 1 << level
        cells = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        low = np.asarray(_ROOT.origin) + cells * (_ROOT.edge / n)
        high = low + _ROOT.edge / n
        nearest = np.linalg.norm(np.clip(0.0, low, high), axis=1)
        farthest = np.linalg.norm(np.maximum(np.abs(low), np.abs(high)), axis=1)
        keys.append(np.sort(encode_keys(level, cells[(nearest <= 1.0) & (farthest >= 1.0)].astype(np.int64))))
    return np.concatenate(keys)


def _shell_cells(keys: Int64, edge: int) -> Bool:
    """bool [S, O, O, O] (z, y, x)."""
    levels, xyz = decode_keys(keys)
    out = np.zeros((len(keys), edge, edge, edge), np.bool_)
    inside = (np.arange(edge) + 0.5) / edge
    for k, (level, corner) in enumerate(zip(levels.tolist(), xyz, strict=True)):
        size = _ROOT.edge / 2**level
        z, y, x = np.meshgrid(*((corner[a] + inside) * size + _ROOT.origin[a] for a in (2, 1, 0)), indexing="ij")
        out[k] = np.abs(np.sqrt(x * x + y * y + z * z) - 1.0) < _SHELL * size / edge
    return out


def _cameras(photos: int, size: int) -> PosedCameras:
    camera = Camera("PINHOLE", size, size, (1.4 * size, 1.4 * size, size / 2, size / 2))
    angle = 2 * np.pi * np.arange(photos) / photos
    eyes = 3.0 * np.stack([0.9 * np.cos(angle), 0.9 * np.sin(angle), np.full(photos, 0.44)], axis=1)
    poses = look_at(eyes, np.zeros((photos, 3)), np.array([0.0, 0.0, 1.0]))
    return PosedCameras((camera,), np.zeros(photos, np.int32), poses)


def _photo(cameras: PosedCameras, photo: int) -> UInt8:
    """A ball of radius 1, coloured by its surface's place, before a grey wall."""
    camera = cameras.cameras[0]
    y, x = np.meshgrid(np.arange(camera.height) + 0.5, np.arange(camera.width) + 0.5, indexing="ij")
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    origins, directions = cameras.rays(np.full(len(xy), photo), xy)
    b = (origins * directions).sum(axis=1)
    inside = b * b - (origins * origins).sum(axis=1) + 1.0
    surface = origins + (-b - np.sqrt(np.maximum(inside, 0.0)))[:, None] * directions
    rgb = np.where((inside > 0)[:, None], 0.5 + 0.45 * np.sin(9.0 * surface), 0.4)
    return np.asarray((rgb * 255).round(), np.uint8).reshape(camera.height, camera.width, 3)
