"""The step in fixed buffers: the host step's losses and gradients, nothing asked of the device, faults, restarts.

One file, longer than others: its tests share trainers and the drawing of batches.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infnerf_tiles.pipelines.train import train
from torch.utils._python_dispatch import TorchDispatchMode
from training.small_scenes import (
    SHAPE,
    ball_keys,
    ball_trainer,
    build_scene,
    differences,
    frame,
    new_shared,
    ring,
    state_arrays,
    tiny,
    write_city,
)

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.decoder import faded_basis
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Rays
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.settings import Settings
from infnerf_tiles.training import checkpoint
from infnerf_tiles.training.depth import DepthBatch, DepthTargets
from infnerf_tiles.training.device_batch import GROUP, DeviceBatch
from infnerf_tiles.training.device_status import FAILED, LOOK_EVERY, PER_RAY
from infnerf_tiles.training.device_step import DeviceStep
from infnerf_tiles.training.host_step import HostStep
from infnerf_tiles.training.pixels import PixelBatch
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer, psnr_of

TOP = NodeId(1, 0, 1, 0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread: the work is too small to share out."""
    set_threads(1)
    yield
    set_threads(None)


def device_step(t: Trainer) -> DeviceStep:
    """The trainer's kind of step."""
    assert isinstance(t.stepper, DeviceStep)
    return t.stepper


def surface_points(rng: np.random.Generator, count: int = 300) -> DepthTargets:
    """Points of the ball, each seen by the camera nearest to it."""
    xyz: Float64 = rng.normal(size=(count, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    centres = ring().centres
    photo = np.linalg.norm(centres[None] - xyz[:, None], axis=2).argmin(axis=1)
    return DepthTargets(centres, photo.astype(np.int32), xyz)


def frozen_root(rng: np.random.Generator) -> ResidentNodes:
    """A committed root and a node below it with a random field, everything occupied."""
    keys = np.array([0, NodeId(1, 1, 1, 1).key], np.int64)
    return ResidentNodes(
        keys=keys,
        treelet=np.zeros(2, np.int32),
        tables=rng.normal(0.0, 0.3, (2, SHAPE.row_length)).astype(np.float16),
        occupancy=np.full((2, SHAPE.occupancy_bytes), 255, np.uint8),
        lambda_max=np.full(2, 5.0, np.float32),
        top_keys=np.zeros(1, np.int64),
        bases=rng.normal(0.0, 0.3, (1, SHAPE.base_length)).astype(np.float16),
    )


def some_trainer(kind: str, rng: np.random.Generator, *more: str, on_device: bool = True, **options: Any) -> Trainer:
    """A trainer of the whole scene ("seed") or of a treelet below a frozen root at the hand-over ("inner")."""
    settings = tiny("training.samples_per_step=16384", *more)
    if kind == "seed":
        return ball_trainer(
            ball_keys(2), settings=settings, on_device=on_device, depth=surface_points(rng), **options
        )
    keys = np.array(sorted([TOP.key, *(child.key for child in TOP.children()[:3])]), np.int64)
    return ball_trainer(
        keys, settings=settings, top=TOP, frozen=frozen_root(rng), shared=new_shared(8, trainable=False),
        frame_=frame(lod_bias=-2.7), on_device=on_device, depth=surface_points(rng), **options,
    )  # fmt: skip


def random_features(t: Trainer, seed: int) -> None:
    """The same random features in the own nodes and dense grids of trainers of one kind."""
    rng = np.random.default_rng(seed)
    state, rows = t.state, SHAPE.training_dense_rows
    state.tables[: state.num_own] = torch.from_numpy(
        rng.normal(0.0, 0.3, (state.num_own, SHAPE.table_size, SHAPE.features)).astype(np.float32)
    )
    state.dense[:rows] = torch.from_numpy(rng.normal(0.0, 0.3, (rows, SHAPE.features)).astype(np.float32))
    state.publish()


def draw(step: DeviceStep, key: int = 5, coarser: int = 0) -> DeviceBatch:
    """A batch, marched: as many rays as fit the buffers of rays."""
    batch = step.source.draw(*(torch.tensor([v], device=step.device) for v in (key, coarser)))
    work = step.work
    everything = torch.tensor([step.source.num_rays], dtype=torch.int32, device=step.device)
    for_device(step.device).march_packed(
        batch.rays, work.state.arena, work.frame.march, num_rays=everything, out=step.packed,
        keep=2 * work.settings.samples_per_ray, adapt=True,
    )  # fmt: skip
    return batch


def as_host_batch(step: DeviceStep, batch: DeviceBatch) -> tuple[PixelBatch, DepthBatch, Rays, torch.Tensor]:
    """The batch as the host step takes it: rays to pixels first, then those to points."""
    order = torch.argsort(step.source.to_point, stable=True)
    rays = Rays(
        origins=batch.rays.origins[order],
        directions=batch.rays.directions[order],
        footprint=batch.rays.footprint[order],
        offset=batch.rays.offset[order],
    )
    num = int((step.source.to_point == 0).sum())
    photo = batch.photo[order].numpy().astype(np.int32)
    assert batch.distance is not None
    pixels = PixelBatch(
        photo=photo[:num],
        pyramid=np.zeros(num, np.int32),
        xy=np.zeros((num, 2)),
        rgb=batch.rgb[order][:num].numpy(),
    )
    points = DepthBatch(
        photo=photo[num:],
        origins=np.zeros((len(photo) - num, 3)),
        directions=np.zeros((len(photo) - num, 3)),
        distance=batch.distance[order][num:].double().numpy(),
    )
    return pixels, points, rays, batch.basis[order]


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_loss_and_gradients_are_the_host_steps(kind: str, rng: np.random.Generator) -> None:
    terms = ("training.lambda_distortion=0.1", "training.samples_per_ray=32")
    seed = int(rng.integers(1 << 30))
    a, b = (
        some_trainer(kind, np.random.default_rng(seed), *terms, on_device=on_device) for on_device in (False, True)
    )
    for t in (a, b):
        random_features(t, seed)
    host, step = a.stepper, device_step(b)
    assert isinstance(host, HostStep)
    step.packed = step.packed.allocate(rays=step.source.num_rays, capacity=1 << 17, capacity_above=1 << 16)
    step.capacity = 1 << 17
    batch = draw(step)
    packed = step.packed
    assert bool(packed.ray_kept.all())
    assert (int(packed.above_count) > 100) == (kind == "inner")
    pixels, points, rays, basis = as_host_batch(step, batch)
    samples = host.kernels.march(rays, a.state.arena, a.frame.march, keep=64, adapt=True)
    assert samples.count == int(packed.count)
    share = float(rng.random()) if kind == "seed" else 1.0
    seen = faded_basis(basis, share)
    visible, known = host._visible(samples, seen)
    expected, expected_error, _ = host._loss(pixels, points, rays, visible, known, basis, seen, torch.Generator())
    expected.backward()  # type: ignore[no-untyped-call]
    step.inputs.put(5, 0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), share)
    loss, error, weights, count = step.loss(batch)
    g, h = a.moments.gradients, b.moments.gradients
    found = torch.autograd.grad(loss, [h.anchor, *(b.shared.parameters() if kind == "seed" else [])], allow_unused=True)
    step._kernels.spread_gradient(h, base_cells=SHAPE.base_cells, grids=SHAPE.num_corrections)
    assert int(count) == len(pixels.photo)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert float(error) == pytest.approx(expected_error, rel=1e-4)
    assert float(weights[int(packed.count) :].abs().sum()) == 0.0
    for mine, theirs in ((h.tables, g.tables), (h.dense, g.dense)):
        scale = float(theirs.abs().max())
        assert scale > 0
        assert torch.allclose(mine, theirs, atol=2e-4 * scale)
    assert torch.equal(h.mark_tables, g.mark_tables)
    if kind == "seed":
        for mine, parameter in zip(found[1:], a.shared.parameters(), strict=True):
            assert parameter.grad is not None
            assert mine is not None
            assert torch.allclose(mine, parameter.grad, atol=1e-3 * float(parameter.grad.abs().max()) + 1e-9)


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_copies_show_what_the_masters_say(kind: str, rng: np.random.Generator) -> None:
    seed = int(rng.integers(1 << 30))
    a, b = (some_trainer(kind, np.random.default_rng(seed), on_device=on_device) for on_device in (False, True))
    for t in (a, b):
        random_features(t, seed)
    slot = torch.from_numpy(rng.integers(0, a.state.num_own, 500).astype(np.int32))
    position = a.state.local_position(slot, torch.from_numpy(rng.random((500, 3), np.float32)))
    out = torch.empty((2, 500, SHAPE.features))
    for t, row in ((a, out[0]), (b, out[1])):
        for_device(t.state.device).encode_into(position, slot, torch.ones(500), t.state.arena, row)
    assert torch.allclose(out[0], out[1], atol=1e-5)
    before = b.state.dense.clone()
    b.train_step()
    assert not torch.equal(before, b.state.dense)
    b.state.publish()  # changes nothing: the step left copies that are up to date
    copies = b.state.arena.dense.clone()
    b.state.publish()
    assert torch.equal(copies, b.state.arena.dense)


def test_rays_that_do_not_fit_leave_the_rest_as_it_is(rng: np.random.Generator) -> None:
    t = some_trainer("inner", rng, "training.lambda_distortion=0.1")
    step = device_step(t)
    random_features(t, 1)
    batch = draw(step)
    kept = int(step.packed.ray_kept.sum())
    assert 0 < kept < step.source.num_rays  # it overflows
    assert int(step.packed.count) <= step.capacity < int(step.packed.demand)
    loss, error, _, count = step.loss(batch)
    # the same rays, alone in buffers with room for more
    step.packed = step.packed.allocate(rays=step.source.num_rays, capacity=1 << 17, capacity_above=1 << 16)
    step.capacity = 1 << 17
    for_device(step.device).march_packed(
        batch.rays, t.state.arena, t.frame.march, num_rays=torch.tensor([kept]), out=step.packed,
        keep=2 * t.work.settings.samples_per_ray, adapt=True,
    )  # fmt: skip
    alone = step.loss(batch)
    assert int(step.packed.demand) == int(step.packed.count)
    assert alone[0].item() == pytest.approx(loss.item(), rel=1e-5)
    assert float(alone[1]) == pytest.approx(float(error), rel=1e-5)
    assert int(alone[3]) == int(count) == int((1 - step.source.to_point[:kept]).sum())


def test_the_rays_in_use_come_to_fill_the_buffers(rng: np.random.Generator) -> None:
    t = some_trainer("seed", rng, "training.samples_per_ray=8", total_rays=10**9)
    step = device_step(t)
    fill = []
    for _ in range(25):
        t.train_step()
        fill.append(int(step.packed.demand) / step.capacity)
    assert 0.85 < np.mean(fill[-5:]) < 1.02
    record = step.check()
    assert record.step == t.step == 25
    assert record.per_ray == pytest.approx(float(step.status.values[PER_RAY]))


class _NoQuestions(TorchDispatchMode):
    """Fails at operations that bring a value to the host or whose result's size depends on values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "bincount"):
            if word in name:
                raise AssertionError(f"{name} would wait for the device")
        if ("index.Tensor" in name or "index_put" in name) and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            raise AssertionError(f"{name} with a mask would wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_a_step_asks_the_device_for_nothing(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = ("training.lambda_distortion=0.1", "training.lambda_transparency=0.1")
    t = some_trainer(kind, rng, *terms)
    step = device_step(t)
    t.train_step()

    # the kernels' twins on the processor may ask: there the host is the device
    def let_in(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                return kernel(*args, **options)

        return call

    module = for_device(step.device)
    names = ("march_packed", "encode", "encode_into", "composite", "adam", "spread_gradient", "fold_dense", "note")
    for name in (*names, "decode"):
        monkeypatch.setattr(module, name, let_in(getattr(module, name)))
    with _NoQuestions():
        step.step()
    with pytest.raises(AssertionError, match="would wait"), _NoQuestions():
        bool(step.status.values[FAILED] < 0)


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_one_seed_gives_the_same_bits_and_another_seed_others(kind: str) -> None:
    results = []
    for _ in range(2):
        t = some_trainer(kind, np.random.default_rng(3), total_rays=20000, grows=True, room=20)
        t.run()
        results.append(state_arrays(t))
    assert differences(*results) == []
    other = some_trainer(kind, np.random.default_rng(3), total_rays=20000)
    other.work.seed = (8, 1)
    other.run()
    assert "tables" in differences(results[0], state_arrays(other))


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_a_training_that_goes_on_equals_one_that_never_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.training.growth.MIN_WEIGHT", 0.01)
    monkeypatch.setattr("infnerf_tiles.training.schedule.PRIOR_STEPS", 4)
    monkeypatch.setattr("infnerf_tiles.training.device_step.LOOK_EVERY", 4)
    terms = ("training.occupancy_every=20", "training.samples_per_step=2048", "training.lambda_transparency=0.01")

    def new() -> Trainer:
        return some_trainer(
            kind, np.random.default_rng(3), *terms, total_rays=6000, grows=True, room=30, warm=False
        )

    straight, first, second = new(), new(), new()
    straight.run()
    half = straight.step // 2 + 1
    assert half > 10
    for k in range(half):
        if k == half // 2:
            checkpoint.save(first)  # saving leaves no trace
        first.train_step()
    arrays, counters = checkpoint.save(first)
    arrays = {name: array.copy() for name, array in arrays.items()}
    first.train_step()
    checkpoint.restore(second, arrays, counters)
    assert second.step == half
    second.run()
    assert differences(state_arrays(straight), state_arrays(second)) == []
    if kind == "seed":
        assert straight.state.num_own > straight.state.capacity - 30


def test_a_checkpoint_of_one_kind_of_step_serves_the_other() -> None:
    def new(on_device: bool) -> Trainer:
        return some_trainer("seed", np.random.default_rng(3), on_device=on_device, total_rays=9000)

    for from_device in (True, False):
        one, other = new(from_device), new(not from_device)
        for _ in range(5):
            one.train_step()
        arrays, counters = checkpoint.save(one)
        checkpoint.restore(other, {k: v.copy() for k, v in arrays.items()}, counters)
        assert other.step == 5
        assert torch.equal(one.state.tables, other.state.tables)
        again, _ = checkpoint.save(other)
        assert [n for n in arrays if n.startswith("shared") and not np.array_equal(arrays[n], again[n])] == []
        error = other.train_step()
        assert math.isfinite(error)


def test_nan_stops_with_treelet_and_step_and_what_was_before_is_kept(rng: np.random.Generator) -> None:
    t = some_trainer("seed", rng, total_rays=10**9, grows=True)
    step = device_step(t)
    for _ in range(3):
        t.train_step()
    before = state_arrays(t)
    source = step.source.draw

    def poisoned(key: torch.Tensor, coarser: torch.Tensor) -> DeviceBatch:
        batch = source(key, coarser)
        batch.rgb[0] = math.nan
        return batch

    step.source.draw = poisoned  # type: ignore[method-assign]
    t.train_step()
    step.source.draw = source  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"L0/0-0-0.*step 3 .*last good state is kept"):
        t.run(lambda now: None if now.step < 3 + 2 * LOOK_EVERY else pytest.fail("it went on"))
    after = state_arrays(t)
    assert [n for n in differences(before, after) if n != "counters"] == []
    assert t.step == 3
    with pytest.raises(NonFiniteError):
        checkpoint.save(t)


def test_nan_in_a_table_stops_a_step_too(rng: np.random.Generator) -> None:
    t = some_trainer("inner", rng, total_rays=10**9)
    t.train_step()
    t.state.tables[: t.state.num_own] = math.nan
    t.state.publish()
    t.train_step()
    with pytest.raises(NonFiniteError, match=r"L1/0-1-0.*step 1 "):
        device_step(t).settle()


def test_frozen_nodes_and_the_shared_parts_never_move(rng: np.random.Generator) -> None:
    t = some_trainer("inner", rng, total_rays=20000)
    capacity, own_rows = t.state.capacity, SHAPE.training_dense_rows
    before = state_arrays(t)
    t.run()
    after = state_arrays(t)
    assert np.array_equal(before["tables"][capacity:], after["tables"][capacity:])
    assert np.array_equal(before["dense"][own_rows:], after["dense"][own_rows:])
    assert [n for n in differences(before, after) if n.startswith("shared")] == []
    assert not np.array_equal(before["tables"][: t.state.num_own], after["tables"][: t.state.num_own])
    assert not np.array_equal(before["dense"][:own_rows], after["dense"][:own_rows])


def test_every_group_has_its_share_of_rays_to_points(rng: np.random.Generator) -> None:
    step = device_step(some_trainer("seed", rng))
    batch = draw(step)
    assert batch.distance is not None
    assert step.source.num_rays % GROUP == 0
    assert torch.equal(batch.distance > 0, step.source.to_point > 0)
    assert float(step.source.to_point.mean()) == pytest.approx(1 / GROUP)
    # the points lie on the unit ball
    at = batch.rays.origins + batch.distance[:, None].double() * batch.rays.directions
    root = step.work.frame.root
    world = at * root.edge + torch.tensor(root.origin, dtype=torch.float64)
    assert torch.allclose(world[batch.distance > 0].norm(dim=1), torch.ones(1, dtype=torch.float64), atol=1e-5)
    coarse = draw(step, coarser=2)
    assert float((coarse.rays.footprint * 40).min()) == 4.0


def test_a_ball_is_learned_as_well_as_by_the_host_step(rng: np.random.Generator) -> None:
    errors = []
    for on_device in (False, True):
        t = ball_trainer(
            ball_keys(2), total_rays=30000, settings=tiny("training.samples_per_step=4096"), on_device=on_device,
            depth=surface_points(np.random.default_rng(0)), warm=False,
        )  # fmt: skip
        t.run()
        assert t.progress == 1.0
        errors.append(psnr_of(t.recent_error))
    assert errors[0] > 17.0
    # it marches more and drops nothing early, so it takes more steps for as many rays
    assert errors[1] > errors[0] - 0.3


def train_city(folder: Path, settings: Settings, *, on_device: bool) -> dict[str, float]:
    """Train a scene of several bands; decibels of its stages, without treelets that no photo shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infnerf_tiles.training.tasks.TrainingState", partial(TrainingState, copies=on_device))
        scene = build_scene(folder / "data", folder / f"scene-{on_device}", settings)
        summary = train(scene)
    assert summary.failed == ()
    return {report.treelet: report.psnr for report in summary.reports if report.steps}


def test_a_city_of_several_bands_is_learned_as_well_as_by_the_host_step(tmp_path: Path) -> None:
    write_city(tmp_path / "data", num_photos=9, size=(64, 48))
    settings = tiny("training.passes=0.8", "training.samples_per_step=2048", "training.device='cpu'")
    host, device = (train_city(tmp_path, settings, on_device=on_device) for on_device in (False, True))
    both = host.keys() & device.keys()
    assert len(both) > 5
    assert np.mean([device[name] for name in both]) > np.mean([host[name] for name in both]) - 0.5
