"""Camera paths to files."""

import time
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from rendering.random_scenes import make_scene, near_keys, pose
from zarr.storage import MemoryStore

from infnerf_tiles.errors import SettingsError
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


def test_frames_of_another_sequence_go_and_nothing_else_does(renderer: Renderer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    render_sequence(renderer, PATH, out, extras=Extras(alpha=True, levels=True))
    (out / "frame_000007.png").write_bytes(b"mine")
    (tmp_path / "out_levels" / "notes.txt").write_text("mine")
    short = replace(PATH, camera_to_world=POSES[:1], times=np.zeros(1)).resized(12, 9)
    render_sequence(renderer, short, out)
    assert sorted(place.name for place in out.iterdir()) == ["frame_000000.png", "frame_000007.png", "sequence.json"]
    assert iio.imread(out / "frame_000000.png").shape == (9, 12, 3)
    assert not (tmp_path / "out_alpha").exists()
    assert [place.name for place in (tmp_path / "out_levels").iterdir()] == ["notes.txt"]
    # a frame that was taken away is drawn again
    render_sequence(renderer, PATH, tmp_path / "again")
    (tmp_path / "again" / "frame_000000.png").unlink()
    assert render_sequence(renderer, PATH, tmp_path / "again").frames_kept == 0
    assert (tmp_path / "again" / "frame_000000.png").is_file()


def test_folders_that_hold_something_else_are_refused(renderer: Renderer, tmp_path: Path) -> None:
    for name in ("holiday", "scene", "a_alpha"):
        (tmp_path / name).mkdir()
    (tmp_path / "holiday" / "frame_000000.png").write_bytes(b"mine")
    (tmp_path / "scene" / "zarr.json").write_text("{}")
    (tmp_path / "a_alpha" / "beach.png").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (
        ("holiday", "new or empty"), ("scene", "outside of scenes"), ("scene/a.png", "outside of scenes"),
        ("scene/b/c", "outside of scenes"), ("f.gif", "got .gif"), ("f.mov", r"\.mp4, \.png"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=message):
            render_sequence(renderer, PATH, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SettingsError, match="a_alpha: expected a new or empty"):
        render_sequence(renderer, PATH, tmp_path / "a", extras=Extras(alpha=True))
    assert (tmp_path / "holiday" / "frame_000000.png").read_bytes() == b"mine"
    (tmp_path / "v1.2").mkdir()
    written = render_sequence(renderer, PATH, tmp_path / "v1.2", extras=Extras(alpha=True))
    assert written.outputs == (tmp_path / "v1.2", tmp_path / "v1.2_alpha")


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


def test_a_film_never_waits_for_what_it_could_have_known(tmp_path: Path) -> None:
    """All that a frame needs is read while the one before is drawn, once."""
    # places so far apart that a frame needs nodes which the next one does not
    angles = np.linspace(0.0, 10.0, 12)
    targets = np.stack([4.0 + 11.0 * np.cos(angles), 4.0 + 11.0 * np.sin(angles), np.full(12, 4.0)], axis=1)
    poses = np.stack([pose(tuple(t + np.array([2.0, 1.0, 20.0])), tuple(t)) for t in targets])
    camera = Camera("SIMPLE_PINHOLE", 24, 18, (60.0, 12.0, 9.0))
    path = CameraPath(camera=camera, camera_to_world=poses, times=np.arange(12) / 30)
    with (
        Scene.of_store(make_scene(MemoryStore(), keys=near_keys(3, (4.0, 4.0, 4.0), 2.0), density=-1.0)) as scene,
        Renderer(scene, threads=1, read_ahead=True) as ahead,
    ):
        draw = ahead.render

        def unhurried(camera: Camera, place: np.ndarray, **options: object) -> object:
            picture = draw(camera, place, **options)  # type: ignore[arg-type]
            while ahead.cache._ahead.num_reading:  # a picture of this size takes less time than reading
                time.sleep(0.001)
            return picture

        ahead.render = unhurried  # type: ignore[method-assign, assignment]
        written = render_sequence(ahead, path, tmp_path / "film.mp4")
        counters = ahead.cache.counters
        assert written.frames_waited == 0
        assert counters.ready > 0, "the flight meets new nodes"
        assert counters.hit_rate > 0.9
        assert counters.bytes_read <= 1.3 * counters.touched_bytes
