"""The step in fixed buffers on a GPU: replayed graphs, the processor's results, faults, a whole scene."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train
from training.small_scenes import ball_keys, ball_trainer, build_scene, learned, state_arrays, tiny, write_city
from training.test_device_step import device_step, draw, random_features, some_trainer, surface_points

from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.training import checkpoint
from infnerf_tiles.training.device_batch import DeviceBatch
from infnerf_tiles.training.device_step import DeviceStep
from infnerf_tiles.training.trainer import Trainer, psnr_of

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("triton")

LARGE = "training.samples_per_step=65536"


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def copied(t: Trainer, to: Trainer) -> None:
    """Put one trainer's state into another."""
    arrays, counters = checkpoint.save(t)
    checkpoint.restore(to, arrays, counters)


def share_apart(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> float:
    """Share of the entries that differ by more than the tolerance."""
    return float(((a - b).abs() > tolerance).float().mean())


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_a_replayed_step_is_the_eager_one(kind: str) -> None:
    terms = (LARGE, "training.lambda_distortion=0.1", "training.lambda_transparency=0.1")
    a, b = (some_trainer(kind, np.random.default_rng(3), *terms, device="cuda") for _ in range(2))
    b.stepper = DeviceStep(b.work, captured=False)
    for _ in range(6):
        a.train_step()
    assert device_step(a)._graph is not None
    copied(a, b)
    for _ in range(3):
        before = a.state.tables.clone()
        a.train_step()
        b.train_step()
        one, two = device_step(a).check(), device_step(b).check()
        assert (one.step, one.samples, one.rays) == (two.step, two.samples, two.rays)
        assert one.error == pytest.approx(two.error, rel=1e-4)
        moved = float((a.state.tables - before).abs().max())
        assert moved > 0
        # sums by atomics differ in the last bits, which Adam shows where a gradient is all but zero
        assert share_apart(a.state.tables, b.state.tables, 0.02 * moved) < 1e-3
        copied(a, b)


@pytest.mark.parametrize("kind", ["seed", "inner"])
def test_a_step_is_the_processors(kind: str) -> None:
    settings = (LARGE, "training.lambda_distortion=0.1", "training.precision='float32'")
    a, b = (some_trainer(kind, np.random.default_rng(3), *settings, device=d) for d in ("cpu", "cuda"))
    for t in (a, b):
        random_features(t, 1)
    step_a, step_b = device_step(a), device_step(b)
    with torch.no_grad():
        batch_a, batch_b = draw(step_a), draw(step_b)
        assert torch.equal(batch_a.photo, batch_b.photo.cpu())
        assert torch.allclose(batch_a.rgb, batch_b.rgb.cpu(), atol=1e-6)
        assert torch.allclose(batch_a.rays.directions, batch_b.rays.directions.cpu(), atol=1e-14)
        assert torch.allclose(batch_a.basis, batch_b.basis.cpu(), atol=1e-5)
        loss_a, error_a, _, count_a = step_a.loss(batch_a)
        loss_b, error_b, _, count_b = step_b.loss(batch_b)
    assert int(step_a.packed.demand) == pytest.approx(int(step_b.packed.demand), rel=1e-3)
    assert float(count_a) == pytest.approx(float(count_b), rel=0.01)
    assert float(loss_a) == pytest.approx(float(loss_b), rel=0.02)  # some rays fit on one of them only; float16 tables
    assert float(error_a) == pytest.approx(float(error_b), rel=0.02)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says that it is a prototype
def test_steps_wait_for_nothing() -> None:
    t = some_trainer("inner", np.random.default_rng(3), LARGE, "training.lambda_transparency=0.1", device="cuda")
    for _ in range(5):
        t.train_step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(20):
            device_step(t).take()
        device_step(t)._captured = False
        device_step(t).take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert device_step(t).check().step == 26


def test_growth_needs_no_new_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.training.growth.MIN_WEIGHT", 0.01)
    t = some_trainer("seed", np.random.default_rng(3), device="cuda", grows=True, room=30, total_rays=60000)
    before = t.state.num_own
    for _ in range(6):
        t.train_step()
    graph = device_step(t)._graph
    assert graph is not None
    t.run()
    assert t.state.num_own > before
    assert device_step(t)._graph is graph
    new = t.state.tables[before : t.state.num_own]
    assert bool(torch.isfinite(new).all())
    assert bool(new.any())
    copies = t.state.arena.tables[: t.state.num_own].float()
    assert torch.allclose(copies, t.state.tables[: t.state.num_own], rtol=1e-3, atol=1e-6)


def test_nan_stops_and_what_was_before_is_kept() -> None:
    t = some_trainer("seed", np.random.default_rng(3), device="cuda", total_rays=10**9)
    step = device_step(t)
    for _ in range(6):
        t.train_step()
    torch.cuda.synchronize()
    before = state_arrays(t)
    rgb = step.source._pixels._rgb.clone()
    decoder = t.shared.decoder.colour_out.bias
    kept = decoder.detach().clone()
    with torch.no_grad():
        decoder.fill_(math.nan)
    t.train_step()
    with torch.no_grad():
        decoder.copy_(kept)
    assert torch.equal(rgb, step.source._pixels._rgb)
    with pytest.raises(NonFiniteError, match=r"L0/0-0-0.*step 6 "):
        t.run()
    after = state_arrays(t)
    assert [n for n in before if n != "counters" and not np.array_equal(before[n], after[n])] == []


def test_a_training_goes_on_from_a_checkpoint() -> None:
    def new() -> Trainer:
        return some_trainer("inner", np.random.default_rng(3), LARGE, device="cuda", total_rays=10**9)

    first, second = new(), new()
    for _ in range(40):
        first.train_step()
    copied(first, second)
    for t in (first, second):
        t.train_step()
    one, two = device_step(first).check(), device_step(second).check()
    assert (one.step, one.samples) == (two.step, two.samples)
    assert one.error == pytest.approx(two.error, rel=1e-4)


def test_a_ball_is_learned_as_well_as_on_the_processor() -> None:
    settings = tiny("training.samples_per_step=4096", "training.precision='auto'")
    found = []
    for device in ("cpu", "cuda", "cuda"):
        t = ball_trainer(
            ball_keys(2), total_rays=60000, settings=settings, on_device=True, device=device,
            depth=surface_points(np.random.default_rng(0)), warm=False,
        )  # fmt: skip
        t.run()
        found.append(psnr_of(t.recent_error))
    assert found[1] > found[0] - 0.3
    assert abs(found[1] - found[2]) < 0.2


def test_a_batch_is_planted_with_nan_without_a_graph() -> None:
    t = some_trainer("inner", np.random.default_rng(3), device="cuda", total_rays=10**9)
    t.stepper = DeviceStep(t.work, captured=False)
    step = t.stepper
    t.train_step()
    source = step.source.draw

    def poisoned(key: torch.Tensor, coarser: torch.Tensor) -> DeviceBatch:
        batch = source(key, coarser)
        batch.rgb[0] = math.nan
        return batch

    step.source.draw = poisoned  # type: ignore[method-assign]
    t.train_step()
    with pytest.raises(NonFiniteError, match=r"L1/0-1-0.*step 1 "):
        step.settle()


def test_a_city_of_several_bands(tmp_path: Path) -> None:
    data = write_city(tmp_path / "data", num_photos=12, size=(96, 72))
    settings = ("training.passes=2.0", "training.samples_per_step=8192")
    scores = []
    for device in ("cpu", "cuda"):
        scene = build_scene(data, tmp_path / device, tiny(*settings, f"training.device='{device}'"))
        summary = train(scene)
        assert summary.failed == ()
        assert learned(scene)
        score = evaluate(scene, split="test").levels[0].psnr
        assert score is not None
        scores.append(score)
    assert scores[1] > scores[0] - 0.5
