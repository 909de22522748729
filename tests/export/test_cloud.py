"""Points of surfaces: where they lie, in which nodes, and how dense."""

import numpy as np
import pytest
from export.exported import renderer_of, scene_of

from infnerf_tiles.errors import BudgetError, SettingsError
from infnerf_tiles.export.cloud import Cloud, collect, surface_mask, thinned_to_parents
from infnerf_tiles.geometry.camera import project
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, decode_keys, key_levels
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.vantage import pinhole


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return renderer_of(scene_of())


@pytest.fixture(scope="module")
def cloud(renderer: Renderer) -> Cloud:
    return collect(renderer)


def test_points_lie_where_pictures_show_surfaces(renderer: Renderer, cloud: Cloud) -> None:
    """Every point is, for one photo at least, at the depth that is drawn in its pixel."""
    cameras = renderer.scene.cameras
    found = np.zeros(cloud.num_points, np.bool_)
    for photo in range(cameras.num_photos):
        camera = pinhole(cameras.camera(photo))
        pose = cameras.camera_to_world[photo]
        depth = renderer.render(camera, pose).depth
        local = (cloud.xyz - pose[:, 3]) @ pose[:, :3]
        xy, ahead = project(camera, local)
        column, row = (
            np.clip(np.floor(xy[:, axis]).astype(int), 0, size - 1)
            for axis, size in ((0, camera.width), (1, camera.height))
        )
        distance = np.linalg.norm(local, axis=1)
        centred = np.abs(xy - np.floor(xy) - 0.5).max(axis=1) < 1e-3
        found |= ahead & centred & (np.abs(depth[row, column] - distance) < 1e-4 * distance)
    assert found.all()
    assert cloud.num_points > 200


def test_points_belong_to_existing_nodes_one_a_cell(renderer: Renderer, cloud: Cloud) -> None:
    scene = renderer.scene
    assert (scene.octree.index_of(cloud.keys) >= 0).all()
    levels, xyz = decode_keys(cloud.keys)
    scale = np.exp2(levels.astype(np.float64))[:, None]
    unit = scene.header.root.to_unit(cloud.xyz) * scale
    assert np.array_equal(np.floor(unit).astype(np.int64), xyz)
    cells = np.floor(unit * scene.header.cells).astype(np.int64)
    assert len(np.unique(np.column_stack([levels, cells]), axis=0)) == cloud.num_points
    assert len(np.unique(levels)) > 1


def test_silhouettes_and_sky_are_left_out(renderer: Renderer) -> None:
    cameras = renderer.scene.cameras
    picture = renderer.render(pinhole(cameras.camera(0)), cameras.camera_to_world[0])
    mask = surface_mask(picture)
    assert mask.any()
    assert not mask[~np.isfinite(picture.depth)].any()
    assert (1 - picture.transmittance[mask] > 0.9).all()
    depth = np.where(mask, picture.depth, np.nan)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) / np.nanmin(depth)
        assert np.nanmax(jump) < 0.5


def test_parents_hold_the_same_place_with_fewer_points(renderer: Renderer, cloud: Cloud) -> None:
    deepest = cloud.subset(key_levels(cloud.keys) == 3)
    above = thinned_to_parents(deepest, renderer)
    assert 0 < above.num_points < deepest.num_points
    assert np.isin(above.xyz, deepest.xyz).all()
    assert set(above.keys.tolist()) == set(ancestor_keys(deepest.keys, 2).tolist())


def test_one_node_alone(renderer: Renderer, cloud: Cloud) -> None:
    node = NodeId.from_key(int(ancestor_keys(cloud.keys[-1:], 2)[0]))
    part = collect(renderer, node=node)
    inside = key_levels(cloud.keys) >= 2
    inside[inside] = ancestor_keys(cloud.keys[inside], 2) == node.key
    assert np.array_equal(part.keys, cloud.keys[inside])
    assert np.array_equal(part.xyz, cloud.xyz[inside])
    with pytest.raises(SettingsError, match="expected a node of the scene"):
        collect(renderer, node=NodeId(3, 0, 0, 0))


def test_too_many_points_are_refused(renderer: Renderer) -> None:
    with pytest.raises(BudgetError, match="expected up to 100 points"):
        collect(renderer, max_points=100)
    fewer = collect(renderer, pyramid=2)
    assert 0 < fewer.num_points < collect(renderer).num_points
