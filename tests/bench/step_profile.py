"""Full training steps in fixed buffers: milliseconds, samples per second, and where the device's time goes.

Run as `python tests/bench/step_profile.py`; `--help` lists the sizes. On CUDA the table is of kernels, by their share.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

import infnerf_tiles  # noqa: F401  (before torch starts threads)
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import NodeId, RootCube, encode_keys
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.settings import load_settings
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.device_step import DeviceStep
from infnerf_tiles.training.pixels import PATCH, PixelSet, all_patches
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer

EDGE = 256.0


def ground_keys(count: int) -> np.ndarray:
    """`count` nodes around the plane z = EDGE/2, coarse levels first."""
    keys, level = [0], 1
    while len(keys) < count:
        side = 1 << level
        x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        # outwards from the middle, so that the finest nodes lie together
        order = np.argsort(np.maximum(abs(x - side / 2 + 0.5), abs(y - side / 2 + 0.5)).ravel(), kind="stable")
        xyz = np.stack([x.ravel(), y.ravel(), np.full(side * side, side // 2)], axis=1)[order]
        keys += encode_keys(level, xyz)[: count - len(keys)].tolist()
        level += 1
    return np.sort(np.array(keys, np.int64))


def survey(rng: np.random.Generator, photos: int, height: float, size: tuple[int, int]) -> PosedCameras:
    """Cameras `height` over the plane that look down."""
    camera = Camera("PINHOLE", *size, (0.9 * size[0], 0.9 * size[0], size[0] / 2, size[1] / 2))
    pose = np.zeros((photos, 3, 4))
    pose[:, :, :3] = np.diag([1.0, -1.0, -1.0])
    pose[:, :2, 3] = rng.uniform(0.3, 0.7, (photos, 2)) * EDGE
    pose[:, 2, 3] = EDGE / 2 + height
    return PosedCameras((camera,), np.zeros(photos, np.int32), pose)


def make_trainer(options: argparse.Namespace) -> Trainer:
    """A trainer of a flat scene with matter in a few layers of cells."""
    rng = np.random.default_rng(0)
    shape = FieldShape(cells=options.cells, table_size=1 << options.table_log2, features=options.features)
    keys = ground_keys(options.nodes)
    device = torch.device(options.device)
    state = TrainingState(shape, NodeId(0, 0, 0, 0), keys, len(keys) + 64, ResidentNodes.none(shape),
                          device=device, copies=True)  # fmt: skip
    o = shape.occupancy_cells
    cells = np.zeros((len(keys), o, o, o), np.bool_)
    cells[:, : options.layers] = True
    state.start_occupancy(cells, 0.04)
    finest = int(state.level.max())
    gsd_root = EDGE / options.cells
    photos = survey(rng, 40, 0.9 * 800 * gsd_root / 2**finest, (800, 600))
    patches = all_patches(photos, range(photos.num_photos))
    n = patches.count
    pixels = PixelSet(patches, rng.integers(0, 256, (n, PATCH, PATCH, 3), dtype=np.uint8),
                      np.ones((n, PATCH, PATCH), np.bool_))  # fmt: skip
    pixels.valid[::7, 9:] = False
    pixels = PixelSet(patches, pixels.rgb, pixels.valid)
    xyz = np.concatenate([rng.uniform(0.4, 0.6, (5000, 2)) * EDGE, np.full((5000, 1), EDGE / 2 + 0.05)], axis=1)
    shared = Shared(
        decoder=Decoder(
            decoder_shape(features=options.features, hidden=64, geometry_features=15, density_bias=3.5,
                          gsd_ref=gsd_root, gsd_finest=gsd_root / 2**finest),
            torch.Generator().manual_seed(0),
        ),
        appearance=Appearance(photos.num_photos),
        background=Background("sh"),
        trainable=not options.frozen,
    )  # fmt: skip
    settings = load_settings(None, [
        f"training.samples_per_step={options.samples}", f"training.precision='{options.precision}'",
        f"training.samples_per_ray={options.keep}",
    ])  # fmt: skip
    march = MarchSettings(near=16 * gsd_root / 2**finest, step=1.5, gsd_root=gsd_root, lod_bias=0.0)
    return Trainer(
        frame=Frame(root=RootCube((0.0, 0.0, 0.0), EDGE), march=march, max_own_level=finest, can_go_below=False),
        state=state, shared=shared, pixels=pixels, cameras=photos, settings=settings.training, total_rays=10**12,
        seed=(1, 2), grows=False, min_points=8, warm=True,
        depth=DepthTargets(photos.centres, rng.integers(0, 40, 5000).astype(np.int32), xyz),
    )  # fmt: skip


def measure(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Run and time steps; samples per second are those that were shaded."""
    step = trainer.stepper
    assert isinstance(step, DeviceStep)
    on_cuda = step.device.type == "cuda"
    for _ in range(24 if on_cuda else 2):
        step.take()
    before = step.check()
    began = time.perf_counter()
    for _ in range(steps):
        step.take()
    queued = time.perf_counter() - began
    after = step.check()
    seconds = time.perf_counter() - began
    samples = after.samples - before.samples
    result = {
        "ms_per_step": 1e3 * seconds / steps,
        "samples_per_step": samples / steps,
        "rays_per_step": (after.rays - before.rays) / steps,
        "samples_per_ray": after.per_ray,
        "million_samples_per_second": samples / seconds / 1e6,
        "host_ms_per_step": 1e3 * queued / steps,
    }
    if on_cuda:
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return result


def profile(trainer: Trainer, steps: int, rows: int) -> tuple[dict[str, float], str]:
    """Share of the time in which the device ran kernels, and a table of kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_cuda = trainer.state.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with torch_profile(activities=activities) as found:
        for _ in range(steps):
            trainer.stepper.take()
        if on_cuda:
            torch.cuda.synchronize()
    if not on_cuda:
        return {}, found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows)
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.setdefault(event.name, []).append((event.time_range.start, event.time_range.end))
    every = sorted(s for parts in spans.values() for s in parts)
    busy, reach = 0.0, every[0][0]
    for start, end in every:
        busy += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    whole = reach - every[0][0]
    lines = [f"{'us/step':>9} {'share':>6} {'calls':>6}  kernel"]
    totals = {name: sum(b - a for a, b in parts) for name, parts in spans.items()}
    for name in sorted(totals, key=lambda k: -totals[k])[:rows]:
        lines.append(
            f"{totals[name] / steps:9.1f} {totals[name] / whole:6.1%} {len(spans[name]) / steps:6.1f}  {name[:110]}"
        )
    lines.append(f"{busy / steps:9.1f} us busy of {whole / steps:.1f} us, {len(every) / steps:.0f} kernels a step")
    return {"busy": busy / whole, "kernels_per_step": len(every) / steps}, "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nodes", type=int, default=800)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--table-log2", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1 << 19)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6, help="layers of occupied cells over the ground")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=45)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--frozen", action="store_true", help="decoder frozen, as in a treelet after the seed stage")
    parser.add_argument("--eager", action="store_true", help="no CUDA graph")
    parser.add_argument("--unfused", action="store_true", help="the decoder layer by layer")
    parser.add_argument("--json")
    options = parser.parse_args()
    trainer = make_trainer(options)
    if options.eager or options.unfused:
        trainer.stepper = DeviceStep(trainer.work, captured=not options.eager, fused=not options.unfused)
    result = measure(trainer, options.steps)
    shares, table = profile(trainer, min(options.steps, 10), options.rows)
    result |= shares
    if options.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    print(table)  # noqa: T201
    print(json.dumps({**vars(options), **result}, indent=1))  # noqa: T201
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**vars(options), **result}, file, indent=1)


if __name__ == "__main__":
    main()
