"""plan: upper bounds that a real build and training keep to, budgets that choose and refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from infnerf_tiles.pipelines import needs as estimates
from infnerf_tiles.pipelines import plan as planning
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.calibrate import Calibration, calibrate
from infnerf_tiles.pipelines.coverage import cover
from infnerf_tiles.pipelines.partition import Partition, partition, scene_partition
from infnerf_tiles.pipelines.plan import Budgets, Plan, describe, fit, plan, task_needs, train_needs
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, tiny, write_city

from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import BudgetError
from infnerf_tiles.settings import Settings, load_settings
from infnerf_tiles.store.facts import info
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset

SETTINGS = tiny("training.passes=0.3", "octree.treelet_height=1")
MEASURED = Calibration(
    base_bytes=400 << 20, fixed_bytes=1 << 20, step_bytes=100 << 20, slot_bytes=1 << 20, frozen_bytes=1 << 18,
    tree_bytes=1 << 16, device_base_bytes=0, device_slot_bytes=0, device_frozen_bytes=0, step_seconds=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("plan") / "city")


@pytest.fixture(scope="module")
def found(city: Path) -> Partition:
    return partition(read_dataset(city), tiny())


def test_plan_and_build_agree_and_training_keeps_to_it(city: Path, tmp_path: Path) -> None:
    foretold = plan(city, SETTINGS, threads=1)
    report = build(city, str(tmp_path / "scene.zarr"), SETTINGS)
    assert foretold.nodes_per_level == report.nodes_per_level
    assert foretold.treelets_per_band == report.treelets_per_band
    assert foretold.photos == report.photos
    assert foretold.seconds > 0
    train(str(tmp_path / "scene.zarr"), threads=1)
    with SceneStore.open(str(tmp_path / "scene.zarr")) as store:
        facts = info(store)
    assert facts.nodes <= foretold.node_limit
    assert facts.bytes is not None
    assert facts.files is not None
    assert facts.bytes <= foretold.store_bytes
    assert facts.files <= foretold.store_files
    json.dumps(foretold.to_json(), allow_nan=False)


def test_nothing_is_written_and_no_photo_is_opened(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "calibrate", lambda *_: MEASURED)
    bare = tmp_path / "bare"
    (bare / "sparse").mkdir(parents=True)
    (bare / "sparse" / "0").symlink_to(city / "sparse" / "0")
    before = sorted(bare.rglob("*"))
    assert plan(bare, SETTINGS, threads=1, check_photos=False).photos == 9
    assert sorted(bare.rglob("*")) == before


def test_a_calibration_counts_what_training_holds() -> None:
    found = calibrate(tiny(), 1)
    row = 4 * (1 << 9) * 4
    assert 4 * row <= found.slot_bytes < 8 * row  # values, gradients and two moments, and a little
    assert row // 2 <= found.frozen_bytes < 2 * row
    assert found.base_bytes > 50 << 20
    assert found.step_seconds > 0


def test_lower_treelets_are_chosen_for_a_smaller_budget(found: Partition) -> None:
    free = max(task_needs(found, MEASURED, Budgets()).host.values())
    assert fit(found, MEASURED, Budgets(ram=2 * free))[0].settings.octree.treelet_height == 2
    low = max(task_needs(found.with_height(1), MEASURED, Budgets(ram=1)).host.values())
    high = max(task_needs(found, MEASURED, Budgets(ram=1)).host.values())
    if low < high:
        chosen, needs = fit(found, MEASURED, Budgets(ram=low))
        assert chosen.settings.octree.treelet_height == 1
        assert max(needs.host.values()) <= low
    assert sum(chosen_nodes(found)) == found.octree.num_nodes


def chosen_nodes(found: Partition) -> list[int]:
    return [len(t.keys) for t in found.with_height(1).treelets]


def test_what_cannot_fit_is_refused_with_the_nearest_that_does(found: Partition) -> None:
    with pytest.raises(BudgetError, match=r"--ram 1.00 MiB.*the nearest that fits is --ram (\d+)MiB") as refused:
        fit(found, MEASURED, Budgets(ram=1 << 20))
    nearest = int(str(refused.value).partition("fits is --ram ")[2].partition("MiB")[0]) << 20
    fit(found, MEASURED, Budgets(ram=nearest))
    with pytest.raises(BudgetError):
        fit(found, MEASURED, Budgets(ram=nearest - (2 << 20)))
    with pytest.raises(BudgetError, match=r"--scratch.*the nearest that fits is --scratch (\d+)") as refused:
        fit(found, MEASURED, Budgets(scratch=1000))
    fit(found, MEASURED, Budgets(scratch=int(str(refused.value).rpartition(" ")[2])))
    on_device = Calibration(**{**vars(MEASURED), "device_base_bytes": 1 << 30, "device_slot_bytes": 1 << 20})
    with pytest.raises(BudgetError, match=r"--vram.*the nearest that fits is --vram"):
        fit(found, on_device, Budgets(vram=1 << 30))


def test_a_budget_bounds_the_pixels_in_memory(found: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "largest_pixels", lambda _: 1 << 33)
    needs = task_needs(found, MEASURED, Budgets(ram=2 << 30))
    assert needs.pixel_bytes is not None
    assert needs.host["training a treelet"] <= 2 << 30
    assert task_needs(found, MEASURED, Budgets()).pixel_bytes is None


def test_train_refuses_what_does_not_fit(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "calibrate", lambda *_: MEASURED)
    scene = build_scene(city, tmp_path / "scene.zarr", SETTINGS)
    with pytest.raises(BudgetError, match=r"--ram 10.0 MiB.*build again"):
        train(scene, budgets=Budgets(ram=10 << 20), threads=1)
    with SceneStore.open(scene) as store:
        same = scene_partition(store, read_dataset(city), SETTINGS)
    assert same.octree.keys.tolist() == partition(read_dataset(city), SETTINGS).octree.keys.tolist()
    assert train_needs(same, Budgets(ram=8 << 30), 1).pixel_bytes


def _kept(data: Path, scene: Path, settings: Settings) -> tuple[Plan, dict[str, int]]:
    """What was foretold, and what a build and a training in a process of their own took."""
    foretold = plan(data, settings, threads=1)
    build(data, str(scene), settings)
    code = (
        "from infnerf_tiles.pipelines.train import train\n"
        "from infnerf_tiles.store.facts import info\n"
        "from infnerf_tiles.store.scene_store import SceneStore\n"
        "import json, sys\n"
        f"peak = train({str(scene)!r}, threads=1).peak_bytes\n"
        f"with SceneStore.open({str(scene)!r}) as store: facts = info(store)\n"
        "sys.stdout.write(json.dumps({'bytes': facts.bytes, 'files': facts.files, 'peak': peak}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return foretold, json.loads(done.stdout)


def _keeps_to_it(data: Path, scene: Path, settings: Settings) -> None:
    foretold, used = _kept(data, scene, settings)
    for name, most in (("bytes", foretold.store_bytes), ("files", foretold.store_files), ("peak", foretold.ram_bytes)):
        assert used[name] <= most <= 1.25 * used[name], (name, used[name], most)


@pytest.mark.slow
def test_the_demo_city_takes_what_was_foretold_and_hardly_less(tmp_path: Path) -> None:
    write_city_dataset(tmp_path / "city", blocks=(2, 2), num_photos=40, size=(192, 144), supersample=1)
    _keeps_to_it(tmp_path / "city", tmp_path / "scene.zarr", load_settings("demo"))


@pytest.mark.slow
def test_a_real_survey_takes_what_was_foretold_and_hardly_less(tmp_path: Path) -> None:
    """INFNERF_TEST_DATA: a folder with the data set `ochota_kap`, 120 aerial photos of a city with a COLMAP model."""
    data = Path(os.environ.get("INFNERF_TEST_DATA", "")) / "ochota_kap"
    if not data.is_dir():
        pytest.skip("INFNERF_TEST_DATA names no folder with ochota_kap")
    _keeps_to_it(data, tmp_path / "scene.zarr", load_settings(None, ["data.downscale=4"]))


def test_a_plan_describes_what_it_chose(found: Partition) -> None:
    chosen, needs = fit(found, MEASURED, Budgets())
    described = describe(chosen, cover(chosen), MEASURED, needs, Budgets())
    assert described.ram_bytes == max(needs.host.values())
    assert described.worst_task in needs.host
    assert described.treelet_pixels == int(1.6 * found.photo_pixels)
    assert described.largest_treelet_pixels <= described.treelet_pixels + 256
