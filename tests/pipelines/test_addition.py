"""build --add: new photos join a trained scene; what they do not show stays to the bit; all of it or nothing.

One file, longer than others: its tests share a trained scene that takes a while to make.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import infnerf_tiles.pipelines.commits as commits
import numpy as np
import pytest
from infnerf_tiles.pipelines.addition import add_photos
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, some_photos, tiny, without_points

from infnerf_tiles.arrays import AnyArray, Float64
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.errors import BudgetError, DatasetError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.rotation import rotations_from_quaternions
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import SceneIndex, TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify
from infnerf_tiles.synthetic.capture import write_city_dataset

SETTINGS = tiny("training.passes=0.3", "octree.treelet_height=1", "octree.max_level=2", "octree.min_points=30")
"""Three bands of one level each."""
FINE = tiny("octree.treelet_height=2", "octree.max_level=4", "octree.min_points=4")
WIDE = (-250.0, -250.0, -5.0, 250.0, 250.0, 60.0)
NEW = "photo_0000.jpg"
"""A photo of one end of the city; the first one by name, so that rows would move if photos were sorted anew."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row of three blocks."""
    folder = tmp_path_factory.mktemp("addition") / "grown"
    write_city_dataset(folder, blocks=(3, 1), num_photos=20, size=(64, 48), supersample=1, num_points=1500)
    (folder / "split.json").unlink()
    return folder


@pytest.fixture(scope="module")
def photos(grown: Path) -> PosedPhotos:
    return read_dataset(grown)


@pytest.fixture(scope="module")
def former(photos: PosedPhotos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection before the last photo came."""
    rows = np.array([i for i, name in enumerate(photos.names) if name != NEW])
    return some_photos(photos, rows, tmp_path_factory.mktemp("addition") / "former")


@pytest.fixture(scope="module")
def untrained(former: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_scene(former, tmp_path_factory.mktemp("addition") / "untrained.zarr", SETTINGS)


@pytest.fixture(scope="module")
def trained(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = copy_scene(untrained, tmp_path_factory.mktemp("addition") / "trained.zarr")
    assert train(scene, threads=1).remaining == 0
    return scene


def index_of(scene: str) -> SceneIndex:
    with SceneStore.open(scene) as store:
        return store.read_index()


def document(scene: str) -> dict[str, Any]:
    found = json.loads((Path(scene) / "zarr.json").read_text())
    assert isinstance(found, dict)
    return found


def untouched(scene: str, before: str) -> bool:
    """Whether two folders hold the same files."""
    files = [{p.relative_to(s): p.read_bytes() for p in Path(s).rglob("*") if p.is_file()} for s in (scene, before)]
    return files[0] == files[1]


def test_only_what_sees_the_new_photo_is_trained_again(trained: str, grown: Path, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    before = learned(scene)
    with Scene.open(scene) as opened:
        drawn, names, is_test = opened.octree.keys, opened.names, opened.is_test
    report = add_photos(grown, scene)
    assert (report.photos, report.new_photos, report.new_test_photos) == (20, 1, 0)
    assert "L0/0-0-0" in report.marked
    assert len(report.marked) > 2
    assert report.kept > 2
    assert report.kept + report.waiting == index_of(scene).num_treelets
    assert report.waiting == len(report.marked) + report.new_treelets
    assert len(report.coverage.regions) > 0
    json.dumps(report.to_json(), allow_nan=False)
    with Scene.open(scene) as opened:  # drawn as before, until it is trained
        assert np.array_equal(opened.octree.keys, drawn)
        assert opened.names == (*names, NEW)
        assert np.array_equal(opened.is_test, [*is_test, False])
    with SceneStore.open(scene) as store:
        assert not verify(store).damage
    summary = train(scene, threads=1)
    assert summary.remaining == 0
    again = {r.treelet for r in summary.reports}
    assert again >= set(report.marked)
    assert {name for name in again - set(report.marked) if f"{name} base" in before} == set()
    after = learned(scene)
    for name in differences(before, after):
        if name.startswith("L"):  # a node or a base: of one of these, or new
            node = NodeId.parse(name.split()[0])
            assert str(node) in again, name
    assert after["appearance known"][-1]
    assert np.array_equal(after["appearance affine"][:-1], before["appearance affine"])
    assert np.array_equal(after["decoder " + next(n for n in before if n.startswith("decoder")).split()[1]],
                          before[next(n for n in before if n.startswith("decoder"))])  # fmt: skip
    assert any(name.endswith("table") for name in differences(before, after))
    with SceneStore.open(scene) as store:
        assert not verify(store).damage
    assert train(scene, threads=1).treelets == 0


def test_adding_the_same_again_changes_nothing(trained: str, grown: Path, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    first = add_photos(grown, scene)
    once = copy_scene(scene, tmp_path / "once.zarr")
    again = add_photos(grown, scene)
    assert untouched(scene, once)
    assert (again.new_photos, again.marked, again.new_nodes) == (0, (), 0)
    assert (again.waiting, again.kept) == (first.waiting, first.kept)


def test_the_former_collection_adds_nothing(trained: str, former: Path, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    assert add_photos(former, scene).waiting == 0
    assert untouched(scene, trained)


def _moved(photos: PosedPhotos, row: int, by: float) -> Float64:
    poses = photos.cameras.camera_to_world.copy()
    poses[row, 0, 3] += by
    return poses


def _turned(photos: PosedPhotos, row: int, by: float) -> Float64:
    poses = photos.cameras.camera_to_world.copy()
    turn = rotations_from_quaternions(np.array([[np.cos(by / 2), 0.0, np.sin(by / 2), 0.0]]))[0]
    poses[row, :, :3] = poses[row, :, :3] @ turn
    return poses


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p, f: some_photos(p, np.arange(17), f), r"19 photos .* and more, 3 of them cannot be used: photo_0017"),
        (lambda p, f: some_photos(p, np.arange(20), f, poses=_moved(p, 5, 8.0)), r"1 of 19 moved: photo_0005.jpg \(by"),
        (lambda p, f: some_photos(p, np.arange(20), f, poses=_turned(p, 6, 0.05)), r"1 of 19 moved: photo_0006.jpg"),
    ],
)
def test_former_photos_that_went_or_moved_are_refused(
    trained: str, photos: PosedPhotos, make: Callable[[PosedPhotos, Path], Path], says: str, tmp_path: Path
) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    with pytest.raises(DatasetError, match=says):
        add_photos(make(photos, tmp_path / "data"), scene)
    assert untouched(scene, trained)


def test_poses_within_a_tolerance_are_the_same(trained: str, photos: PosedPhotos, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    poses = photos.cameras.camera_to_world.copy()
    poses[:, :, 3] += 1e-3
    data = some_photos(photos, np.arange(20), tmp_path / "data", poses=poses)
    report = add_photos(data, scene)
    assert report.new_photos == 1
    assert report.kept > 0
    assert train(scene, threads=1, stop=lambda: True).skipped == report.kept  # nothing is said to have changed


def test_another_world_frame_is_told_with_its_similarity(trained: str, photos: PosedPhotos, tmp_path: Path) -> None:
    assert photos.points is not None
    turn = rotations_from_quaternions(np.array([[np.cos(0.25), 0.0, 0.0, np.sin(0.25)]]))[0]
    poses = photos.cameras.camera_to_world.copy()
    poses[:, :, :3] = turn @ poses[:, :, :3]
    poses[:, :, 3] = 2.0 * poses[:, :, 3] @ turn.T + 100.0
    data = some_photos(
        photos, np.arange(20), tmp_path / "data", poses=poses, xyz=2.0 * photos.points.xyz @ turn.T + 100.0
    )
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    with pytest.raises(DatasetError, match=r"another world frame \(scale 2, turned by 28.65 degrees") as caught:
        add_photos(data, scene)
    assert "19 of 19 moved" in str(caught.value)
    assert untouched(scene, trained)


def test_another_georeference_is_refused(trained: str, former: Path, grown: Path, tmp_path: Path) -> None:
    for folder, origin in ((former, 0.0), (grown, 5.0)):
        shutil.copytree(folder, tmp_path / folder.name)
        text = json.dumps({"crs": "EPSG:32634", "origin": [origin, 0.0, 0.0]})
        (tmp_path / folder.name / "geo.json").write_text(text)
    scene = build_scene(tmp_path / "former", tmp_path / "scene.zarr", SETTINGS)
    with pytest.raises(DatasetError, match=r"origin .0.0, 0.0, 0.0., got .5.0, 0.0, 0.0. in geo.json"):
        add_photos(tmp_path / "grown", scene)


def test_a_former_photo_that_was_edited_is_refused(trained: str, grown: Path, tmp_path: Path) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    data = tmp_path / "data"
    shutil.copytree(grown, data)
    path = data / "images" / "photo_0003.jpg"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\xff\xd9")
    with pytest.raises(DatasetError, match=r"1 have changed: photo_0003.jpg.*train --accept-changes"):
        add_photos(data, scene)
    assert untouched(scene, trained)


def _halves(photos: PosedPhotos) -> tuple[AnyArray, AnyArray]:
    """Photos of one end of the city, and all."""
    return np.flatnonzero(photos.cameras.centres[:, 0] < -60), np.arange(photos.num_photos)


def test_photos_beyond_the_bounds_are_refused_with_the_numbers(
    photos: PosedPhotos, grown: Path, tmp_path: Path
) -> None:
    some, _ = _halves(photos)
    data = some_photos(photos, some, tmp_path / "some")
    scene = build_scene(data, tmp_path / "scene.zarr", SETTINGS, bounds=(-120.0, -60.0, -5.0, 0.0, 60.0, 60.0))
    with pytest.raises(DatasetError, match=r"of the [\d,]+ points .*\d+%\) lie outside .*at most 5% may"):
        add_photos(grown, scene)


def test_the_octree_grows_where_only_new_photos_look(photos: PosedPhotos, grown: Path, tmp_path: Path) -> None:
    some, everything = _halves(photos)
    data = some_photos(photos, some, tmp_path / "some")
    scene = build_scene(data, tmp_path / "scene.zarr", FINE, bounds=WIDE)
    before = index_of(scene)
    report = add_photos(grown, scene)
    after = index_of(scene)
    assert report.new_photos == len(everything) - len(some)
    assert report.new_nodes == after.num_nodes - before.num_nodes > 0
    assert report.new_treelets == after.num_treelets - before.num_treelets > 0
    assert np.isin(before.keys, after.keys).all()
    assert np.array_equal(after.root_keys[: before.num_treelets], before.root_keys)
    # every 8th row is held out, whatever comes later
    with SceneStore.open(scene) as store:
        stored = store.read_cameras()
    assert (np.flatnonzero(stored.is_test[len(some) :]) + len(some)).tolist() == [8, 16]
    # the scene of all photos from the start has no node that this one lacks, but where too few training photos look
    whole = index_of(build_scene(grown, tmp_path / "whole.zarr", FINE, bounds=WIDE))
    assert np.array_equal(np.union1d(after.keys, whole.keys), after.keys)


def test_the_node_limit_holds(photos: PosedPhotos, grown: Path, tmp_path: Path) -> None:
    some, _ = _halves(photos)
    data = some_photos(photos, some, tmp_path / "some")
    nodes = index_of(build_scene(data, tmp_path / "probe.zarr", FINE, bounds=WIDE)).num_nodes
    tight = FINE.model_copy(update={"octree": FINE.octree.model_copy(update={"max_nodes": nodes})})
    scene = build_scene(data, tmp_path / "scene.zarr", tight, bounds=WIDE)
    with pytest.raises(BudgetError, match=f"{nodes} nodes and .* for the new photos are more than"):
        add_photos(grown, scene)


def test_without_points_cubes_in_view_decide(trained: str, grown: Path, former: Path, tmp_path: Path) -> None:
    settings = tiny("training.passes=0.1", "octree.treelet_height=1", "octree.max_level=1")
    scene = build_scene(without_points(former, tmp_path / "former"), tmp_path / "scene.zarr", settings)
    train(scene, threads=1)
    report = add_photos(without_points(grown, tmp_path / "grown"), scene)
    assert report.new_photos == 1
    assert "L0/0-0-0" in report.marked
    summary = train(scene, threads=1)
    assert summary.remaining == 0
    assert {r.treelet for r in summary.reports} >= set(report.marked)


def test_a_photo_without_points_is_seen_by_where_its_rays_end(
    trained: str, photos: PosedPhotos, tmp_path: Path
) -> None:
    assert photos.points is not None
    rows = np.arange(20, dtype=np.int32)
    rows[photos.names.index(NEW)] = -1
    bare = replace(photos, points=photos.points.renumbered(rows))
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    report = add_photos(some_photos(bare, np.arange(20), tmp_path / "data"), scene)
    cells = {name: NodeId.parse(name) for name in report.marked}
    assert len(cells) > 1
    assert report.kept > 2
    # the photo is of the low end of the first axis
    assert all(node.x < 1 << (node.level - 1) for node in cells.values() if node.level), cells


class Killed(BaseException):
    """Not an Exception, so that nothing tidies up."""


def _killed_at(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> bool:
    """Run `act` and die at the count-th change of the store; whether that happened."""
    left = count
    write, replace, remove, clear = (
        getattr(GuardedStore, n) for n in ("set", "replace_durably", "remove", "remove_folder")
    )

    def spend() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    async def dying_set(self: GuardedStore, key: str, value: Any) -> None:
        spend()
        await write(self, key, value)

    def dying(call: Any) -> Any:
        def wrapped(self: GuardedStore, *arguments: Any) -> None:
            spend()
            call(self, *arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(GuardedStore, "set", dying_set)
        patch.setattr(GuardedStore, "replace_durably", dying(replace))
        patch.setattr(GuardedStore, "remove", dying(remove))
        patch.setattr(GuardedStore, "remove_folder", dying(clear))
        try:
            act()
        except Killed:
            return True
    return False


def test_killed_anywhere_it_is_the_old_scene_or_the_new_one(
    trained: str, grown: Path, former: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = copy_scene(trained, tmp_path / "new.zarr")
    report = add_photos(grown, new)
    old, expected = learned(trained), learned(new)
    drawn = index_of(trained).keys[index_of(trained).states == 1]
    outcomes = set()
    for count in range(0, 400, 7):
        scene = copy_scene(trained, tmp_path / f"{count}.zarr")
        if not _killed_at(monkeypatch, count, lambda scene=scene: add_photos(grown, scene)):  # type: ignore[misc]
            break
        with Scene.open(scene) as opened:
            assert np.array_equal(opened.octree.keys, drawn)
            assert len(opened.names) == len(opened.affine) in (19, 20)
        with SceneStore.open(scene) as store:
            assert not verify(store).damage
            begun = store.data.has("scratch/renewal/zarr.json")
        if begun or len(index_of(scene).keys) != len(index_of(trained).keys):
            # whoever comes next finishes it, though they know nothing of it
            summary = train(scene, data=str(grown), threads=1, stop=lambda: True)
            assert summary.remaining == report.waiting
            assert differences(learned(scene), expected) in ([], ["appearance affine", "appearance known"])
            outcomes.add("new")
        elif not (index_of(scene).treelet_states == TreeletState.PLANNED).any():
            assert train(scene, data=str(former), threads=1).treelets == 0
            assert differences(learned(scene), old) == []
            outcomes.add("old")
        shutil.rmtree(scene)
    assert outcomes == {"old", "new"}
    assert count > 20


def test_a_scene_that_was_not_trained_takes_photos_too(untrained: str, grown: Path, tmp_path: Path) -> None:
    scene = copy_scene(untrained, tmp_path / "scene.zarr")
    report = add_photos(grown, scene)
    assert (report.new_photos, report.marked, report.kept) == (1, (), 0)
    assert report.waiting == index_of(scene).num_treelets
    train(scene, threads=1, stop=lambda: True)
    with SceneStore.open(scene) as store:
        assert len(store.read_small("appearance")["affine"]) == 20


def test_a_training_that_was_stopped_goes_on_with_the_new_photo(trained: str, grown: Path, tmp_path: Path) -> None:
    """What it had finished without the photo, and what the photo does not show, stays."""
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    report = add_photos(grown, scene)
    train(scene, threads=1, stop=lambda: True)
    with SceneStore.open(scene) as store:  # before the first treelet learns from it
        assert store.read_small("appearance")["known"][-1]
    calls = iter([False, False, False])
    first = train(scene, threads=1, stop=lambda: next(calls, True))
    assert 0 < first.treelets < report.waiting
    assert add_photos(grown, scene).waiting == first.remaining
    assert train(scene, threads=1, stop=lambda: True).skipped == report.kept + first.treelets


def test_what_was_finished_and_not_yet_committed_is_taken_up_first(
    trained: str, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = copy_scene(trained, tmp_path / "scene.zarr")
    report = add_photos(grown, scene)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(commits, "commit_records", die)
        with pytest.raises(Killed):
            train(scene, threads=1)
    assert add_photos(grown, scene).waiting == report.waiting - 1
