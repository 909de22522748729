"""The stages of the demo, each a plain function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infnerf_tiles.arrays import UInt8
from infnerf_tiles.cli.upkeep import band_rows
from infnerf_tiles.data.dataset import read_dataset
from infnerf_tiles.data.photos import decode_masked_photo
from infnerf_tiles.pipelines import build, evaluate, train
from infnerf_tiles.rendering.camera_paths import make_path
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene, content_centre
from infnerf_tiles.rendering.vantage import world_up
from infnerf_tiles.rendering.video import FrameWriter, depth_to_image, level_heat_map, to_uint8
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.facts import info
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset

FILM, COMPARISON, LEVELS = "orbit.mp4", "compare.png", "levels.png"
FILES = (FILM, COMPARISON, LEVELS)
_FPS = 12.0
_SUPERSAMPLE = 3


def take_photos(folder: Path, blocks: tuple[int, int], num_photos: int, size: tuple[int, int]) -> None:
    """Write the data set."""
    write_city_dataset(folder, blocks=blocks, num_photos=num_photos, size=size, supersample=_SUPERSAMPLE)


def build_scene(photos: Path, scene: str, settings: Settings) -> None:
    """Write the untrained scene."""
    build.build(photos, scene, settings)


def train_scene(
    scene: str, photos: Path, settings: Settings, threads: int | None, progress: Callable[[str, float, float], None]
) -> tuple[str, ...]:
    """Train what is not yet trained; the treelets that failed."""
    # the folder may have been moved since the scene was built
    return train.train(scene, data=str(photos), settings=settings, threads=threads, progress=progress).failed


def generation_of(scene: str) -> int:
    """Number of the scene's index generation, which changes with whatever is trained."""
    with SceneStore.open(scene) as store:
        return store.generation


def score(scene: str, photos: Path, threads: int | None, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The evaluation on the held-out photos, as JSON values."""
    return evaluate.evaluate(scene, data=str(photos), threads=threads, progress=progress).to_json()


def facts(scene: str) -> dict[str, Any]:
    """What is inside the scene, as JSON values."""
    with SceneStore.open(scene) as store:
        index = store.read_index()
        return {**info(store).to_json(), "bands": band_rows(index, store.header.band_levels)}


def draw(
    scene: str, photos: Path, folder: Path, frames: int, threads: int | None, progress: Callable[[int], None]
) -> None:
    """Draw the film and the pictures into `folder`."""
    with Scene.open(scene) as opened, Renderer(opened, threads=threads) as renderer:
        centre = content_centre(opened)
        path = make_path("orbit", opened.cameras, centre, frames=frames, fps=_FPS)
        with FrameWriter(folder / FILM, fps=path.fps) as film:
            for done, pose in enumerate(path.camera_to_world, start=1):
                film.write(to_uint8(renderer.render(path.camera, pose, affine=opened.mean_affine).rgb))
                progress(done)
        row = _held_out_view(opened)
        camera, pose = opened.cameras.camera(row), opened.cameras.camera_to_world[row]
        picture = renderer.render(camera, pose, affine=opened.mean_affine)
        _write_png(folder / COMPARISON, _photo(photos, opened.names[row]), *_shown(picture))
        # the end of the spiral is near the ground, where one picture holds many levels
        near = make_path("spiral", opened.cameras, centre, frames=2)
        picture = renderer.render(near.camera, near.camera_to_world[-1], affine=opened.mean_affine)
        heat = level_heat_map(picture.level, opened.octree.depth)
        _write_png(folder / LEVELS, to_uint8(picture.rgb), heat)


def _held_out_view(scene: Scene) -> int:
    """Row of the test photo that looks least straight down, which shows most of the city."""
    rows = np.flatnonzero(scene.is_test)
    return int(rows[np.argmax(scene.cameras.forwards[rows] @ world_up(scene.cameras))])


def _photo(folder: Path, name: str) -> UInt8:
    photos = read_dataset(folder)
    return decode_masked_photo(photos.photo_file(photos.names.index(name))).rgb


def _shown(picture: Picture) -> tuple[UInt8, UInt8]:
    return to_uint8(picture.rgb), depth_to_image(picture.depth)


def _write_png(path: Path, *pictures: UInt8) -> None:
    """Pictures of one size, side by side."""
    gap = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    with FrameWriter(path) as writer:
        writer.write(np.concatenate(parts, axis=1))
