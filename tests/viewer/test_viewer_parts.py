"""What the viewer is made of, without a browser."""

import threading
from pathlib import Path

import numpy as np
import pytest
from rendering.random_scenes import CAMERA, MAX_LEVEL, make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.errors import BudgetError
from infnerf_tiles.geometry.camera import unproject
from infnerf_tiles.rendering.camera_paths import flythrough, read_path_file
from infnerf_tiles.rendering.node_cache import Aborted
from infnerf_tiles.rendering.path_files import format_path_file
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.viewer.placement import Placement, page_camera, placement_of
from infnerf_tiles.viewer.shared import SharedRenderer


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5)))


def test_the_page_is_the_world_in_other_units(scene: Scene) -> None:
    placement, start = placement_of(scene)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(10, 3)) * 50
    np.testing.assert_allclose(placement.to_world(placement.to_page(points)), points, atol=1e-9)
    wxyz, position = placement.page_pose(start.pose)
    np.testing.assert_allclose(placement.pose(wxyz, position), start.pose, atol=1e-9)
    # the photos stand a handy distance from the page's origin, which the first view looks at
    assert np.linalg.norm(position) == pytest.approx(10.0)
    ahead = start.target - start.pose[:, 3]
    np.testing.assert_allclose(ahead / np.linalg.norm(ahead), start.pose[:, 2], atol=1e-9)


def test_coordinates_of_maps_keep_their_digits() -> None:
    placement = Placement(centre=np.array([5.4e6, 3.7e5, 100.0]), scale=0.02)
    point = placement.centre + np.array([0.001, 0.0, 0.0])
    on_page = placement.to_page(point).astype(np.float32)
    assert np.linalg.norm(placement.to_world(on_page) - point) < 1e-6


def test_the_pages_camera_spans_its_field_of_view() -> None:
    camera = page_camera(np.radians(50.0), 1.5, 300)
    assert (camera.width, camera.height) == (300, 200)
    edge = unproject(camera, np.array([[150.0, 0.0], [150.0, 200.0]]))
    assert np.degrees(np.arccos(edge[0] @ edge[1])) == pytest.approx(50.0)


def test_the_budget_changes_between_pictures(scene: Scene) -> None:
    shared = SharedRenderer(scene, 1 << 28, 1)
    place = pose((50.0, 35.0, 22.0))
    with shared.use() as renderer:
        first = renderer.render(CAMERA, place)
    started, told = threading.Event(), threading.Event()

    def draw() -> None:
        with shared.use() as renderer:
            started.set()
            try:
                while True:
                    renderer.render(CAMERA, place, abort=lambda: shared.wanted_back)
            except Aborted:
                told.set()

    thread = threading.Thread(target=draw)
    thread.start()
    started.wait()
    shared.resize(3 * shared.smallest)
    assert told.is_set()
    thread.join()
    assert shared.memory_budget == 3 * shared.smallest
    with shared.use() as renderer:
        again = renderer.render(CAMERA, place)
        assert renderer.cache.peak_bytes <= 3 * shared.smallest
    assert np.array_equal(first.rgb, again.rgb)
    with pytest.raises(BudgetError):
        shared.resize(shared.smallest - 1)
    shared.close()


def test_a_saved_path_is_what_render_reads(tmp_path: Path) -> None:
    camera = page_camera(0.9, 1.6, 640)
    keys = np.stack([pose((50.0, 35.0, 22.0)), pose((-20.0, 45.0, 10.0)), pose((5.0, -40.0, 30.0))])
    (tmp_path / "path.json").write_text(format_path_file(camera, keys, 24.0, frames=30, loop=True))
    path = read_path_file(tmp_path / "path.json")
    expected = flythrough(camera, keys, frames=30, loop=True, fps=24.0)
    np.testing.assert_allclose(path.camera_to_world, expected.camera_to_world, atol=1e-12)
    assert path.camera == camera
    assert path.fps == pytest.approx(24.0)


def test_boxes_are_the_nodes_cubes(scene: Scene) -> None:
    pytest.importorskip("viser")
    from infnerf_tiles.viewer.overlays import box_colours, box_lines

    placement, _ = placement_of(scene)
    keys = scene.octree.keys[:9]
    lines = placement.to_world(box_lines(scene, placement, keys)).reshape(9, 24, 3)
    for key_lines, level in zip(lines, scene.octree.levels[:9], strict=True):
        extent = key_lines.max(axis=0) - key_lines.min(axis=0)
        np.testing.assert_allclose(extent, scene.header.root.node_edge(int(level)), rtol=1e-5)
        lengths = np.linalg.norm(key_lines[0::2] - key_lines[1::2], axis=1)
        np.testing.assert_allclose(lengths, extent[0], rtol=1e-4)
    assert scene.octree.levels[8] <= MAX_LEVEL
    by_state = box_colours(scene, keys, 4, by_level=False).reshape(9, -1, 3)
    assert len(np.unique(by_state[:, 0], axis=0)) == 2
    by_level = box_colours(scene, keys, 4, by_level=True).reshape(9, -1, 3)
    assert len(np.unique(by_level[:, 0], axis=0)) == len(np.unique(scene.octree.levels[:9]))
