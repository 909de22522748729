"""The command, and what is too small for files of its own: depth maps and cameras."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from export.exported import renderer_of, scene_of
from PIL import Image

from infnerf_tiles.cli import main
from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.export.camera_files import write_cameras
from infnerf_tiles.export.depth_maps import write_depth_maps
from infnerf_tiles.geometry.node_id import NodeId


def test_the_command_writes_what_the_name_says(tmp_path: Path) -> None:
    scene_of(tmp_path / "s.zarr").close()
    for out, kind in (("c.ply", "points"), ("tiles", "tiles"), ("cams.json", "cameras")):
        result = CliRunner().invoke(main, ["export", str(tmp_path / "s.zarr"), str(tmp_path / out), "--json"])
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert document["what"] == kind
        assert (tmp_path / out).exists()
    for arguments in (["c.xyz", "--what", "points"], ["c.ply", "--node", "nonsense"], ["c.ply", "--node", "L3/0-0-0"]):
        result = CliRunner().invoke(main, ["export", str(tmp_path / "s.zarr"), *arguments])
        assert result.exit_code == 2, result.output


def test_a_place_that_cannot_be_is_refused_first(tmp_path: Path) -> None:
    scene_of(tmp_path / "s.zarr").close()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "old.ply").write_text("mine")
    for out, *options in (
        ["e.obj"], ["cams.csv"], ["e.ply", "--what", "tiles"], ["old.ply", "--what", "depth"], ["file/x.ply"],
        ["file", "--what", "depth"], ["s.zarr", "--what", "depth"],
    ):  # fmt: skip
        result = CliRunner().invoke(main, ["export", str(tmp_path / "s.zarr"), str(tmp_path / out), *options])
        assert result.exit_code == 2, result.output
        assert out in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.ply", "s.zarr"]


def test_depth_of_the_photos_and_of_one_node(tmp_path: Path) -> None:
    scene = scene_of()
    renderer = renderer_of(scene)
    assert write_depth_maps(renderer, tmp_path / "all") == scene.cameras.num_photos
    node = NodeId.from_key(int(scene.octree.keys[1]))
    number = write_depth_maps(renderer, tmp_path / "node", kind="tiff", node=node)
    assert 0 < number <= scene.cameras.num_photos
    first = min((tmp_path / "node").iterdir())
    photo = scene.names.index(first.name.removesuffix(".tiff"))
    expected = renderer.render(scene.cameras.camera(photo), scene.cameras.camera_to_world[photo]).depth
    assert np.array_equal(np.load(tmp_path / "all" / f"{scene.names[photo]}.npy"), expected)
    part = np.asarray(Image.open(first))
    kept = np.isfinite(part)
    assert 0 < kept.sum() < np.isfinite(expected).sum()
    assert np.array_equal(part[kept], expected[kept])


def test_cameras_are_read_back_as_they_were(tmp_path: Path) -> None:
    scene = scene_of()
    assert write_cameras(tmp_path / "transforms.json", scene) == scene.cameras.num_photos
    for name in scene.names:
        Image.new("RGB", (48, 36)).save(tmp_path / name)
    back = read_dataset(tmp_path)
    order = [back.names.index(name) for name in scene.names]
    np.testing.assert_allclose(back.cameras.camera_to_world[order], scene.cameras.camera_to_world, atol=1e-12)
    assert np.array_equal(back.is_test[order], scene.is_test)
    assert back.cameras.camera(order[0]).focal == pytest.approx(scene.cameras.camera(0).focal)
