"""train: goes on where it was stopped, keeps what is done, leaves out what fails.

One file, longer than others: its tests share trained scenes that take a while to make.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import infnerf_tiles.pipelines.commits as commits
import numpy as np
import pytest
from infnerf_tiles.pipelines.train import TrainSummary, train
from training.small_scenes import build_scene, copy_scene, differences, learned, tiny, write_city

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.errors import DataError, NonFiniteError, SettingsError, StorageFullError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.kernels.cpu import set_threads
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.journal import read_all, read_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify
from infnerf_tiles.training import tasks
from infnerf_tiles.training.inputs import scene_settings
from infnerf_tiles.training.seed import seed_nodes
from infnerf_tiles.training.trainer import Trainer

SETTINGS = tiny(
    "training.passes=0.25", "training.seed_share=0.6", "octree.treelet_height=1", "octree.max_level=1",
    "octree.min_points=60",
)  # fmt: skip
"""Two bands of one level each: the root, and up to eight treelets below it."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    set_threads(None)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_city(tmp_path_factory.mktemp("train") / "city")


@pytest.fixture(scope="module")
def untrained(city: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scene(city, tmp_path_factory.mktemp("train") / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def seeded(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scene with its seed stage behind it."""
    scene = copy_scene(untrained, tmp_path_factory.mktemp("train") / "seeded.zarr")
    train(scene, threads=1, stop=lambda: True)
    return scene


@pytest.fixture(scope="module")
def done(seeded: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TrainSummary]:
    """A trained scene."""
    scene = copy_scene(seeded, tmp_path_factory.mktemp("train") / "done.zarr")
    return scene, train(scene, threads=1)


def test_regions_that_the_seed_stage_did_not_sample_take_all_passes(city: Path, tmp_path: Path) -> None:
    settings = tiny(
        "training.passes=1.0", "training.seed_share=0.8", "training.seed_nodes=4", "octree.treelet_height=1",
        "octree.max_level=1", "octree.min_points=60", "octree.growth=0.0",
    )  # fmt: skip
    scene = build_scene(city, tmp_path / "scene.zarr", settings)
    with SceneStore.open(scene) as store:
        sampled = seed_nodes(store.read_index().keys, store.header.band_levels, 4, settings.training.seed)
    assert train(scene, threads=1).remaining == 0
    with SceneStore.open(scene) as store:
        passes = {r.treelet: r.facts["rays"] / r.facts["pixels"] for r in read_all(store) if r.facts["pixels"] > 4000}
    known = {str(NodeId.from_key(int(key))) for key in sampled}
    assert known & passes.keys()
    assert passes.keys() - known
    for treelet, found in passes.items():
        assert found == pytest.approx(0.2 if treelet in known else 1.0, abs=0.05)


@pytest.fixture(scope="module")
def expected(done: tuple[str, TrainSummary]) -> dict[str, AnyArray]:
    return learned(done[0])


def states(scene: str) -> dict[str, TreeletState]:
    with SceneStore.open(scene) as store:
        index = store.read_index()
        return {
            str(NodeId.from_key(int(k))): TreeletState(int(s))
            for k, s in zip(index.root_keys, index.treelet_states, strict=True)
        }


def below(scene: str) -> list[str]:
    """Treelets of the second band."""
    return sorted(name for name in states(scene) if name != "L0/0-0-0")


def test_the_seed_stage_alone_leaves_everything_planned(seeded: str) -> None:
    with SceneStore.open(seeded) as store:
        index = store.read_index()
        assert store.has_small("decoder")
        assert (index.states == 0).all()
        assert (index.slots >= 0).any()  # the warm start
        assert index.base_slots[index.root_keys == 0] >= 0


def test_everything_is_trained_and_sound(done: tuple[str, TrainSummary]) -> None:
    scene, summary = done
    assert set(states(scene).values()) == {TreeletState.TRAINED}
    assert len(states(scene)) > 2
    assert summary.failed == ()
    assert summary.skipped == 0
    assert summary.treelets == len(states(scene))
    assert summary.rays > 0
    # the photos have one pyramid level, which both bands need; deeper pyramids are shared out among bands
    assert 0.5 * summary.photo_pixels < summary.treelet_pixels <= 2 * 1.2 * summary.photo_pixels
    assert summary.peak_bytes > 0
    json.dumps(summary.to_json(), allow_nan=False)
    with SceneStore.open(scene) as store:
        assert not verify(store).damage
        records = {r.treelet: r for r in read_all(store)}
        index = store.read_index()
        assert summary.nodes == int((index.states == 1).sum())
        assert store.data.names("scratch") in ([], [".", "zarr.json"], ["zarr.json"])
    assert records.keys() == states(scene).keys()
    for record in records.values():
        assert record.message == ""
        assert record.steps > 0
        assert record.psnr is not None
        assert 5 < record.psnr < 60


def test_a_second_call_trains_nothing(done: tuple[str, TrainSummary], expected: dict[str, AnyArray]) -> None:
    summary = train(done[0], threads=1)
    assert summary.treelets == 0
    assert summary.reports == ()
    assert summary.skipped == done[1].treelets
    assert summary.nodes == done[1].nodes
    assert differences(learned(done[0]), expected) == []


def test_a_stopped_training_goes_on_to_the_same_result(
    seeded: str, expected: dict[str, AnyArray], tmp_path: Path
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    trained = 0
    for _ in range(20):
        calls = iter([False, False, False])  # once per band, once per treelet
        summary = train(scene, threads=1, stop=lambda calls=calls: next(calls, True))  # type: ignore[misc]
        assert summary.treelets <= 2
        assert summary.skipped <= trained
        trained += summary.treelets
        if all(state == TreeletState.TRAINED for state in states(scene).values()):
            break
    assert trained == len(states(scene))
    assert differences(learned(scene), expected) == []


def _train_in_a_process(scene: str) -> subprocess.Popen[bytes]:
    code = f"from infnerf_tiles.pipelines.train import train; train({scene!r}, threads=1)"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _steps_kept(scene: str) -> set[str]:
    """Checkpoints that lie in the scene."""
    return {str(p) for p in (Path(scene) / "scratch").glob("L*/*") if p.is_dir()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_again_and_again_it_ends_with_the_same_bits(
    city: Path, expected: dict[str, AnyArray], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(
        update={"training": SETTINGS.training.model_copy(update={"checkpoint_seconds": 1e-6})}
    )
    scene = build_scene(city, tmp_path / "scene.zarr", settings)
    kills = 0
    for _ in range(40):
        seen = _steps_kept(scene)
        process = _train_in_a_process(scene)
        fresh = 0
        # killed once it has written a few checkpoints, at whatever it is doing then
        while process.poll() is None and fresh < 8 + 5 * kills:
            now = _steps_kept(scene)
            fresh += bool(now - seen)
            seen = now
            time.sleep(0.003)
        if process.poll() is None and kills < 6:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        break
    assert kills >= 3
    assert differences(learned(scene), expected) == []


@pytest.mark.parametrize("stage", ["seed", "treelet"])
def test_a_treelet_goes_on_from_its_checkpoint(
    stage: str, untrained: str, seeded: str, city: Path, tmp_path: Path, expected: dict[str, AnyArray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As the kill above, in this process: interrupted in the middle, the steps behind it are not repeated."""
    scene = copy_scene(untrained if stage == "seed" else seeded, tmp_path / "scene.zarr")

    clock = itertools.count(0.0, 1000.0)
    steps: list[float] = []

    def interrupt(name: str, share: float, psnr: float) -> None:
        del name, psnr
        steps.append(share)
        if share > 0.5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks.time, "monotonic", lambda: next(clock))
        patch.setattr(tasks, "_KEEPING", 0.0)  # that clock would make it seem slow
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1, progress=interrupt)
    shares: list[float] = []
    train(scene, threads=1, progress=lambda _, share, __: shares.append(share))
    assert shares[0] > 0.4
    assert differences(learned(scene), expected) == []


def test_a_complete_record_is_taken_up(
    seeded: str, expected: dict[str, AnyArray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commits, "commit_records", die)
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1)
    assert set(states(scene).values()) == {TreeletState.PLANNED}
    summary = train(scene, threads=1)
    assert "L0/0-0-0" not in {r.treelet for r in summary.reports}
    assert differences(learned(scene), expected) == []


@pytest.mark.parametrize("group", ["appearance", "decoder"])
def test_a_seed_stage_that_dies_while_it_writes_is_made_good(
    group: str, untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index is committed by then, with the nodes that it grew: a checkpoint from before does not fit any more."""
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    with SceneStore.open(scene, "r+") as store:
        keys = store.read_index().keys
        store.commit(SceneIndex.planned(cut(Octree.from_keys(keys[:-1]), store.header.band_levels)))
    clock = itertools.count(0.0, 1000.0)
    write_small = SceneStore.write_small

    def dies(self: SceneStore, name: Any, arrays: Any) -> None:
        if name == group:
            raise KeyboardInterrupt
        write_small(self, name, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(SceneStore, "write_small", dies)
        patch.setattr(tasks.time, "monotonic", lambda: next(clock))
        patch.setattr("infnerf_tiles.training.growth.MIN_WEIGHT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1)
    with SceneStore.open(scene) as store:
        assert store.read_index().num_nodes >= len(keys)
    summary = train(scene, threads=1)
    assert summary.failed == ()
    assert set(states(scene).values()) == {TreeletState.TRAINED}


def _changed(**training: Any) -> Settings:
    return SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update=training)})


def test_other_settings_are_refused_unless_accepted(done: tuple[str, TrainSummary], tmp_path: Path) -> None:
    scene = copy_scene(done[0], tmp_path / "scene.zarr")
    with pytest.raises(SettingsError, match=r"training.lr 0.005 instead of 0.02.*--accept-changes"):
        train(scene, settings=_changed(lr=5e-3), threads=1)
    summary = train(scene, settings=_changed(lr=5e-3), accept_changes=True, threads=1)
    assert summary.treelets == 0
    # accepted once, they are the scene's own: the same command without the option goes on
    with SceneStore.open(scene) as store:
        assert scene_settings(store.header).training.lr == 5e-3
    assert train(scene, threads=1).treelets == 0
    with pytest.raises(SettingsError, match=r"training.lr 0.02 instead of 0.005"):
        train(scene, settings=_changed(lr=0.02, passes=0.3), threads=1)
    faster = SETTINGS.model_copy(update={"rendering": SETTINGS.rendering.model_copy(update={"step_size": 2.0})})
    faster = faster.model_copy(update={"training": _changed(lr=5e-3).training})
    assert train(scene, settings=faster, threads=1).treelets == 0


def test_other_poses_are_refused_unless_accepted(done: tuple[str, TrainSummary], city: Path, tmp_path: Path) -> None:
    scene = copy_scene(done[0], tmp_path / "scene.zarr")
    other = tmp_path / "moved"
    shutil.copytree(city, other)
    assert train(scene, data=str(other), threads=1).treelets == 0  # the same data set in another place
    (other / "sparse" / "0" / "images.bin").unlink()
    shutil.copy(write_city(tmp_path / "wider", size=(80, 48)) / "sparse" / "0" / "images.bin", other / "sparse" / "0")
    with pytest.raises((SettingsError, DataError), match="photos"):
        train(scene, data=str(other), threads=1)


def test_one_region_is_trained_again(
    done: tuple[str, TrainSummary], expected: dict[str, AnyArray], tmp_path: Path
) -> None:
    scene = copy_scene(done[0], tmp_path / "scene.zarr")
    name = below(scene)[0]
    summary = train(scene, redo=name, threads=1)
    assert [r.treelet for r in summary.reports] == [name]
    assert summary.skipped == len(states(scene)) - 1
    changed = {n.split()[0] for n in differences(learned(scene), expected)}
    assert changed <= {name} | {
        n for n in changed if n.startswith("L") and NodeId.parse(n).ancestor(1) == NodeId.parse(name)
    }
    with SceneStore.open(scene) as store:
        assert not verify(store).damage


@pytest.mark.parametrize("damaged", [False, True])
def test_redoing_the_root_trains_all(done: tuple[str, TrainSummary], damaged: bool, tmp_path: Path) -> None:
    scene = copy_scene(done[0], tmp_path / "scene.zarr")
    if damaged:
        largest = max((f for f in (Path(scene) / "decoder").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        largest.write_bytes(b"x")
    summary = train(scene, redo="L0/0-0-0", threads=1)
    assert {r.treelet for r in summary.reports} == {"seed"} | set(states(scene))
    assert set(states(scene).values()) == {TreeletState.TRAINED}


@pytest.mark.parametrize("name", ["L1/7-7-7", "L5/0-0-0", "x"])
def test_redo_of_what_is_no_treelet_is_refused(done: tuple[str, TrainSummary], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        train(done[0], redo=name, threads=1)


def test_a_photo_that_went_is_named(untrained: str, city: Path, tmp_path: Path) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    data = tmp_path / "city"
    shutil.copytree(city, data)
    photos = read_dataset(data)
    path = photos.paths[int(np.flatnonzero(~photos.is_test)[2])]
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        train(scene, data=str(data), threads=1)
    with SceneStore.open(scene) as store:
        assert not store.has_small("decoder")


def test_a_photo_that_was_changed_is_named_and_can_be_accepted(seeded: str, city: Path, tmp_path: Path) -> None:
    """Its size in pixels is what it was: only its file tells."""
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    data = tmp_path / "city"
    shutil.copytree(city, data)
    photos = read_dataset(data)
    path = photos.paths[int(np.flatnonzero(~photos.is_test)[2])]
    path.write_bytes(path.read_bytes() + b"\0" * 9)
    with pytest.raises(DataError, match=rf"{path.name}.*bytes then.*--accept-changes"):
        train(scene, data=str(data), threads=1)
    train(scene, data=str(data), accept_changes=True, threads=1, stop=lambda: True)
    assert train(scene, data=str(data), threads=1).remaining == 0


@pytest.mark.parametrize("area", ["pixels/", "scratch/L", "params/"])
def test_a_full_disk_is_told_and_nothing_is_lost(
    area: str, seeded: str, expected: dict[str, AnyArray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    write = GuardedStore.set
    left = 3
    clock = itertools.count(0.0, 1000.0)

    async def full(self: GuardedStore, key: str, value: Any) -> None:
        nonlocal left
        left -= key.startswith(area)
        if left < 0 and key.startswith(area):
            raise StorageFullError(f"{self.name}: no space left while writing {key}")
        await write(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedStore, "set", full)
        patch.setattr(tasks.time, "monotonic", lambda: next(clock))
        with pytest.raises(StorageFullError, match=area):
            train(scene, threads=1)
    with SceneStore.open(scene) as store:
        assert not verify(store).damage
        assert not [name for name in store.data.names("pixels") if name.startswith("L")]
    train(scene, threads=1)
    assert differences(learned(scene), expected) == []


def test_a_photo_that_breaks_is_named(seeded: str, city: Path, tmp_path: Path) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    data = tmp_path / "city"
    shutil.copytree(city, data)
    photos = read_dataset(data)
    path = photos.paths[int(np.flatnonzero(~photos.is_test)[2])]
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=path.name):
        train(scene, data=str(data), threads=1)


def test_no_data_set_is_an_error(untrained: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(untrained, data=str(tmp_path / "nowhere"), threads=1)


def test_a_trained_scene_draws_without_its_photos(done: tuple[str, TrainSummary], city: Path, tmp_path: Path) -> None:
    data = tmp_path / "city"
    shutil.copytree(city, data)
    scene = build_scene(data, tmp_path / "scene.zarr", _changed(passes=0.1))
    train(scene, threads=1)
    shutil.rmtree(data)
    with Scene.open(scene) as opened, Renderer(opened) as renderer:
        picture = renderer.render(opened.cameras.camera(0), opened.cameras.camera_to_world[0])
    assert np.isfinite(picture.rgb).all()
    assert picture.rgb.std() > 0.01


def _plant_nan(patch: pytest.MonkeyPatch, treelet: str, field: str = "tables") -> None:
    start = tasks.start_occupancy

    def planted(context: Any, state: Any, filled: Any) -> Any:
        cells = start(context, state, filled)
        if str(state.top) == treelet:
            getattr(state, field)[:8] = float("nan")
            cells[:] = True
        return cells

    patch.setattr(tasks, "start_occupancy", planted)


def test_nan_costs_one_treelet(
    seeded: str, expected: dict[str, AnyArray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    name = below(scene)[1]
    with monkeypatch.context() as patch:
        _plant_nan(patch, name, "dense")
        summary = train(scene, threads=1)
    assert len(summary.failed) == 1
    assert name in summary.failed[0]
    assert "step 0" in summary.failed[0]
    found = states(scene)
    assert found.pop(name) == TreeletState.FAILED
    assert set(found.values()) == {TreeletState.TRAINED}
    with SceneStore.open(scene) as store:
        record = read_record(store, name)
        assert record is not None
        assert record.status == TreeletState.FAILED
        assert "step 0" in record.message
    with Scene.open(scene) as opened, Renderer(opened) as renderer:
        picture = renderer.render(opened.cameras.camera(0), opened.cameras.camera_to_world[0])
    assert np.isfinite(picture.rgb).all()
    again = train(scene, threads=1)
    assert [r.treelet for r in again.reports] == [name]
    assert differences(learned(scene), expected) == []


def test_treelets_wait_for_a_parent_that_failed(
    seeded: str, expected: dict[str, AnyArray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    with monkeypatch.context() as patch:
        _plant_nan(patch, "L0/0-0-0", "dense")
        summary = train(scene, threads=1)
    assert "L0/0-0-0" in summary.failed[0]
    assert summary.treelets == 0
    found = states(scene)
    assert found.pop("L0/0-0-0") == TreeletState.FAILED
    assert set(found.values()) == {TreeletState.PLANNED}
    train(scene, threads=1)
    assert differences(learned(scene), expected) == []


def test_nan_that_only_the_last_step_leaves_is_noticed(
    seeded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    run = Trainer.run

    def poisoned(self: Trainer, on_step: Any = None) -> None:
        run(self, on_step)
        self.state.tables[0, 0] = float("nan")

    monkeypatch.setattr(Trainer, "run", poisoned)
    summary = train(scene, threads=1)
    assert len(summary.failed) == 1
    assert "L0/0-0-0" in summary.failed[0]
    assert states(scene)["L0/0-0-0"] == TreeletState.FAILED


def test_nan_in_the_seed_stage_says_so(untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    with monkeypatch.context() as patch:
        _plant_nan(patch, "L0/0-0-0", "dense")
        with pytest.raises(NonFiniteError, match="step 0"):
            train(scene, threads=1)
    with SceneStore.open(scene) as store:
        assert not store.has_small("decoder")


def test_two_threads_give_the_same_bits_as_one(seeded: str, expected: dict[str, AnyArray], tmp_path: Path) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    train(scene, threads=2)
    assert differences(learned(scene), expected) == []


def test_growth_keeps_to_what_was_planned(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the samples ask for."""
    monkeypatch.setattr("infnerf_tiles.training.growth.MIN_WEIGHT", 0.0)
    scene = build_scene(city, tmp_path / "scene.zarr", tiny(*FREE, "octree.growth=0.5"))
    with SceneStore.open(scene) as store:
        planned = store.read_index().num_nodes
    summary = train(scene, threads=1)
    assert summary.failed == ()
    with SceneStore.open(scene) as store:
        nodes = store.read_index().num_nodes
    assert nodes <= int(np.ceil(1.5 * planned))
    free = build_scene(city, tmp_path / "free.zarr", tiny(*FREE))
    train(free, threads=1)
    with SceneStore.open(free) as store:
        assert store.read_index().num_nodes > np.ceil(1.5 * planned)


FREE = ("training.passes=0.6", "octree.treelet_height=1", "octree.max_level=2", "octree.growth=16.0")
