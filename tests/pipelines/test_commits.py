"""Finished treelets become part of the scene many at a time; waiting changes no bit and loses nothing."""

from pathlib import Path
from typing import Any

import infnerf_tiles.pipelines.commits as commits
import numpy as np
import pytest
from infnerf_tiles.pipelines.commits import COMMIT_SECONDS, Commits
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, tiny, write_city

from infnerf_tiles.errors import PhotoError
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.scene_store import SceneStore

SETTINGS = tiny(
    "training.passes=0.2", "training.seed_share=0.6", "octree.treelet_height=1", "octree.max_level=1",
    "octree.min_points=60",
)  # fmt: skip


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scene with its seed stage behind it."""
    folder = tmp_path_factory.mktemp("commits")
    scene = build_scene(write_city(folder / "city"), folder / "seeded.zarr", SETTINGS)
    train(scene, threads=1, stop=lambda: True)
    return scene


def count_commits(patch: pytest.MonkeyPatch) -> list[int]:
    """Treelets of each commit from now on."""
    made: list[int] = []
    commit = commits.commit_records

    def counted(store: SceneStore, treelets: Any) -> Any:
        made.append(len(treelets))
        return commit(store, treelets)

    patch.setattr(commits, "commit_records", counted)
    return made


def trained(scene: str) -> int:
    with SceneStore.open(scene) as store:
        return int((store.read_index().treelet_states == TreeletState.TRAINED).sum())


def test_a_band_is_committed_at_once_with_the_bits_of_one_after_the_other(
    seeded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, slow = copy_scene(seeded, tmp_path / "scene.zarr"), copy_scene(seeded, tmp_path / "slow.zarr")
    made = count_commits(monkeypatch)
    summary = train(scene, threads=1)
    assert len(made) == 2  # bands
    assert sum(made) == summary.treelets > 3
    made.clear()
    monkeypatch.setattr(commits, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(commits, "_MOST_SHARE", 1e9)
    train(slow, threads=1)
    assert made == [1] * summary.treelets
    assert differences(learned(scene), learned(slow)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, PhotoError("gone")])
def test_what_was_finished_before_a_failure_is_committed(
    seeded: str, tmp_path: Path, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    finished = 0

    def progress(name: str, share: float, psnr: float) -> None:
        nonlocal finished
        del name, psnr
        finished += share >= 1.0
        if finished == 3:
            raise error

    with pytest.raises((KeyboardInterrupt, PhotoError)):
        train(scene, threads=1, progress=progress)
    assert trained(scene) == 2


def test_a_stop_commits(seeded: str, tmp_path: Path) -> None:
    scene = copy_scene(seeded, tmp_path / "scene.zarr")
    calls = iter([False] * 4)  # twice per band and once per treelet
    summary = train(scene, threads=1, stop=lambda: next(calls, True))
    assert trained(scene) == summary.treelets > 1


def test_a_kill_before_the_commit_loses_nothing(seeded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, quiet = copy_scene(seeded, tmp_path / "scene.zarr"), copy_scene(seeded, tmp_path / "quiet.zarr")
    everything = train(quiet, threads=1).treelets

    def die(self: Commits) -> None:
        if len(self._waiting) > 1:
            raise KeyboardInterrupt
        flush(self)

    flush = Commits.flush
    with monkeypatch.context() as patch:
        patch.setattr(Commits, "flush", die)
        with pytest.raises(KeyboardInterrupt):
            train(scene, threads=1)
    assert trained(scene) == 1  # the first band alone
    made: list[int] = []
    commit = SceneStore.commit

    def counted(self: SceneStore, index: Any) -> int:
        made.append(int((index.treelet_states == TreeletState.TRAINED).sum()))
        return commit(self, index)

    monkeypatch.setattr(SceneStore, "commit", counted)
    assert train(scene, threads=1).treelets == 0
    assert trained(scene) == everything
    assert made[0] == everything  # taken up in one commit
    assert differences(learned(scene), learned(quiet)) == []


def test_a_large_index_is_committed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cost, made = 0.0, 10.0, []

    def commit(store: Any, treelets: Any) -> None:
        nonlocal now
        del store
        made.append(len(treelets))
        now += cost

    monkeypatch.setattr(commits, "commit_records", commit)
    waiting = Commits(None, clock=lambda: now)  # type: ignore[arg-type]
    for _ in range(1000):
        now += 1.0
        waiting.add("L0/0-0-0")
    assert made[0] == COMMIT_SECONDS
    assert set(made[1:]) == {200}  # a twentieth of the time
    waiting.flush()
    waiting.flush()
    assert sum(made) == 1000
    assert np.all(np.array(made) > 0)
