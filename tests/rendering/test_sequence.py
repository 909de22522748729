"""Camera paths to files."""

from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from rendering.random_scenes import make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.camera_paths import CameraPath
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.sequence import Extras, companion, render_sequence
from infnerf_tiles.rendering.video import depth_to_image, level_heat_map, to_uint8

CAMERA = Camera("SIMPLE_PINHOLE", 24, 18, (30.0, 12.0, 9.0))
POSES = np.stack([pose((50.0, 35.0, 22.0)), pose((45.0, 40.0, 22.0))])
PATH = CameraPath(
    camera=CAMERA,
    camera_to_world=POSES,
    times=np.array([0.0, 0.5]),
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    scene = Scene.of_store(make_scene(MemoryStore(), keys=near_keys(2, (2.0, 2.0, 2.0), 1.5), density=-2.0))
    return Renderer(scene, threads=1)


def test_a_folder_gets_the_frames_and_every_extra_one_of_its_own(renderer: Renderer, tmp_path: Path) -> None:
    shares: list[tuple[float, int]] = []
    affine = np.eye(3, 4) * 0.5
    written = render_sequence(
        renderer, PATH, tmp_path / "out", extras=Extras(depth=True, alpha=True, levels=True), affine=affine,
        lod_bias=-0.5, progress=lambda done, total: shares.append((done, total)),
    )  # fmt: skip
    assert [place.name for place in written.outputs] == ["out", "out_depth", "out_alpha", "out_levels"]
    assert shares == [(1.0, 2), (2.0, 2)]
    pictures = [renderer.render(CAMERA, place, affine=affine, lod_bias=-0.5) for place in PATH.camera_to_world]
    assert written.num_samples == sum(picture.num_samples for picture in pictures)
    depths = pictures[0].depth[np.isfinite(pictures[0].depth)]
    near, far = np.percentile(depths, (1, 99))
    for frame, picture in enumerate(pictures):
        name = f"frame_{frame:06d}.png"
        assert np.array_equal(iio.imread(tmp_path / "out" / name), to_uint8(picture.rgb))
        alpha = iio.imread(tmp_path / "out_alpha" / name)
        assert np.array_equal(alpha[:, :, 0], to_uint8(1 - picture.transmittance))
        levels = iio.imread(tmp_path / "out_levels" / name)
        assert np.array_equal(levels, level_heat_map(picture.level, renderer.scene.octree.depth))
        # the scale of the first frame holds for all
        depth = iio.imread(tmp_path / "out_depth" / name)
        assert np.array_equal(depth, depth_to_image(picture.depth, float(near) / 1.5, float(far) * 1.5))


def test_a_film_is_whole_or_not_there(renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render_sequence(renderer, PATH, tmp_path / "film.mp4", extras=Extras(depth=True))
    assert iio.improps(tmp_path / "film.mp4", plugin="pyav").shape == (2, 18, 24, 3)
    assert (tmp_path / "film_depth.mp4").is_file()
    draw = renderer.render

    def breaks(camera: Camera, place: np.ndarray, **options: object) -> object:
        if np.array_equal(place, PATH.camera_to_world[1]):
            raise ConnectionError("gone")
        return draw(camera, place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer, "render", breaks)
    with pytest.raises(ConnectionError):
        render_sequence(renderer, PATH, tmp_path / "broken.mp4", extras=Extras(levels=True))
    assert not list(tmp_path.glob("*broken*"))


def test_extras_stand_beside_the_colours() -> None:
    assert companion(Path("a/film.mp4"), "depth") == Path("a/film_depth.mp4")
    assert companion(Path("a/frames"), "alpha") == Path("a/frames_alpha")
    assert companion(Path("p.PNG"), "levels") == Path("p_levels.PNG")
    assert Extras().names == ()


def test_an_interrupted_folder_goes_on_where_it_stopped(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = Extras(depth=True)
    render_sequence(renderer, PATH, tmp_path / "whole", extras=extras)
    draw = renderer.render
    drawn: list[int] = []

    def counted(camera: Camera, place: np.ndarray, **options: object) -> object:
        frame = [np.array_equal(place, known) for known in PATH.camera_to_world].index(True)
        if frame == 1 and broken:
            raise KeyboardInterrupt
        drawn.append(frame)
        return draw(camera, place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer, "render", counted)
    broken = True
    with pytest.raises(KeyboardInterrupt):
        render_sequence(renderer, PATH, tmp_path / "parts", extras=extras)
    broken = False
    written = render_sequence(renderer, PATH, tmp_path / "parts", extras=extras)
    assert (written.frames_kept, drawn) == (1, [0, 1])
    for folder in ("", "_depth"):
        for frame in range(2):
            name = f"frame_{frame:06d}.png"
            parts = (tmp_path / f"parts{folder}" / name).read_bytes()
            assert parts == (tmp_path / f"whole{folder}" / name).read_bytes()
    # complete: nothing is drawn; other options: everything is
    assert render_sequence(renderer, PATH, tmp_path / "parts", extras=extras).frames_kept == 2
    assert render_sequence(renderer, PATH, tmp_path / "parts", extras=extras, lod_bias=-1.0).frames_kept == 0
    assert drawn == [0, 1, 0, 1]


@pytest.mark.parametrize(("kind", "output"), [("npy", "out"), ("tiff", "out"), ("npy", "p.png"), ("tiff", "f.mp4")])
def test_depth_for_programs_keeps_every_bit(renderer: Renderer, tmp_path: Path, kind: str, output: str) -> None:
    path = PATH if not output.endswith(".png") else replace(PATH, camera_to_world=POSES[:1], times=np.zeros(1))
    extras = Extras(depth=True, depth_format=kind)  # type: ignore[arg-type]
    written = render_sequence(renderer, path, tmp_path / output, extras=extras)
    stem = Path(output).stem
    place = tmp_path / f"{stem}_depth"
    files = [place / f"frame_{i:06d}.{kind}" for i in range(path.num_frames)]
    if output.endswith(".png"):
        place = tmp_path / f"{stem}_depth.{kind}"
        files = [place]
    assert written.outputs == (tmp_path / output, place)
    for file, pose_of_frame in zip(files, path.camera_to_world, strict=True):
        expected = renderer.render(CAMERA, pose_of_frame).depth
        got = np.load(file) if kind == "npy" else np.asarray(Image.open(file))
        assert got.dtype == np.float32
        assert np.array_equal(got, expected)
        assert np.isinf(expected).any()
