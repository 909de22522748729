"""Small opaque scenes to export, with and without a place on Earth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rendering.random_scenes import make_scene, near_keys
from zarr.storage import MemoryStore

from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene

UTM = {"crs": "EPSG:32634", "origin": [499000.0, 5785000.0, 110.0], "model_to_crs": None}


def scene_of(place: Path | None = None) -> Scene:
    store = make_scene(place or MemoryStore(), keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=6.0, fill=0.4)
    return Scene.of_store(store)


def placed(scene: Scene, georeference: dict[str, Any]) -> Scene:
    """The scene with a georeference; only its header knows."""
    header = replace(scene.header, georeference=georeference)
    return replace(scene, header=header)


def renderer_of(scene: Scene) -> Renderer:
    return Renderer(scene, threads=1)
