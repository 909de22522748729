"""train: settings given to the first training are the scene's own; later ones are refused by name, or accepted."""

import itertools
from pathlib import Path
from typing import Any

import infnerf_tiles.pipelines.train as pipeline
import pytest
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, tiny, write_city

from infnerf_tiles.errors import NonFiniteError, SettingsError
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.journal import read_all, read_record
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training import tasks
from infnerf_tiles.training.inputs import scene_inputs, scene_settings, stored_settings
from infnerf_tiles.training.tasks import settings_fingerprint

SETTINGS = tiny("training.passes=0.1", "octree.max_level=1", "octree.treelet_height=1", "octree.min_points=60")
ROOT = "L0/0-0-0"


def given(**training: Any) -> Settings:
    return SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update=training)})


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("given")
    return build_scene(write_city(folder / "city"), folder / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def seeded(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A seed stage with another learning rate than was built with."""
    scene = copy_scene(untrained, tmp_path_factory.mktemp("given") / "seeded.zarr")
    train(scene, settings=given(lr=5e-3, device="cpu"), threads=1, stop=lambda: True)
    return scene


@pytest.fixture(scope="module")
def done(seeded: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained to the end by the plain command."""
    scene = copy_scene(seeded, tmp_path_factory.mktemp("given") / "done.zarr")
    assert train(scene, threads=1).remaining == 0
    return scene


def own(scene: str) -> Settings:
    with SceneStore.open(scene) as store:
        return scene_settings(store.header)


def test_the_first_training_s_settings_are_kept_and_the_plain_command_goes_on_with_them(done: str) -> None:
    assert own(done).training.lr == 5e-3
    assert own(done).training.device == SETTINGS.training.device  # where it ran is no fact of the scene
    with SceneStore.open(done) as store:
        assert {r.settings_fingerprint for r in read_all(store)} == {settings_fingerprint(given(lr=5e-3))}
    assert train(done, threads=1).treelets == 0
    assert train(done, settings=given(lr=5e-3, device="cpu"), threads=1).treelets == 0


def test_until_something_is_trained_settings_may_change(untrained: str, tmp_path: Path) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for lr in (5e-3, 6e-3):
        with pytest.raises(KeyboardInterrupt):
            train(scene, settings=given(lr=lr), threads=1, progress=interrupt)
        assert own(scene).training.lr == lr


def test_after_the_seed_stage_others_are_refused_by_name_or_accepted(seeded: str, tmp_path: Path) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    with pytest.raises(SettingsError, match=r"training.passes 0.2 instead of 0.1; .*--accept-changes"):
        train(scene, settings=given(lr=5e-3, passes=0.2), threads=1)
    train(scene, settings=given(lr=5e-3, passes=0.2), threads=1, accept_changes=True, stop=lambda: True)
    assert own(scene).training.passes == 0.2


def test_a_seed_stage_that_is_done_but_not_taken_up_counts(
    untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # called before the stage, for what a kill left, and after it
        calls = itertools.count()
        real = pipeline.take_up_seed_result
        patch.setattr(pipeline, "take_up_seed_result", lambda store: real(store) if next(calls) == 0 else die())
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1)
    with pytest.raises(SettingsError, match=r"training.lr 0.005 instead of 0.02"):
        train(scene, settings=given(lr=5e-3), threads=1)
    assert train(scene, threads=1, stop=lambda: True).reports == ()


def test_a_scene_whose_training_s_settings_were_never_kept_takes_them_when_they_are_given(
    done: str, tmp_path: Path
) -> None:
    scene = copy_scene(done, tmp_path / "scene.zarr")
    with SceneStore.open(scene, "r+") as store:
        store.change_settings(stored_settings(SETTINGS, scene_inputs(store.header)))
    with pytest.raises(SettingsError, match="those of the scene are not the ones that it was trained with"):
        train(scene, threads=1)
    train(scene, settings=given(lr=5e-3), threads=1)
    assert train(scene, threads=1).treelets == 0


def _die_before_the_commit(scene: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A training whose root has left its record and nothing more."""

    commit = SceneStore.commit

    def die(self: SceneStore, index: SceneIndex) -> int:
        if (index.treelet_states == TreeletState.TRAINED).any():
            raise KeyboardInterrupt
        return commit(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SceneStore, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1, **options)
    with SceneStore.open(scene) as store:
        record = read_record(store, ROOT)
        assert record is not None
        assert record.status == TreeletState.TRAINED


def test_a_finished_record_of_other_settings_is_not_taken_up(
    seeded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    _die_before_the_commit(scene, monkeypatch)
    summary = train(scene, settings=given(lr=7e-3), accept_changes=True, threads=1)
    assert ROOT in {report.treelet for report in summary.reports}
    with SceneStore.open(scene) as store:
        assert {r.settings_fingerprint for r in read_all(store)} == {settings_fingerprint(given(lr=7e-3))}
    assert train(scene, threads=1).treelets == 0


def test_a_finished_retry_of_a_failed_treelet_is_taken_up(
    seeded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")

    def fails(*_: Any, **__: Any) -> None:
        raise NonFiniteError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "finish", fails)
        assert len(train(scene, threads=1).failed) == 1
    _die_before_the_commit(scene, monkeypatch)
    with SceneStore.open(scene) as store:
        index = store.read_index()
        assert index.treelet_states[index.root_keys == 0] == TreeletState.FAILED
    summary = train(scene, threads=1)
    assert ROOT not in {report.treelet for report in summary.reports}
    assert summary.remaining == 0
