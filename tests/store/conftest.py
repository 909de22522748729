from collections.abc import Iterator
from pathlib import Path

import pytest
from store_scenes import header
from zarr.storage import MemoryStore

from infnerf_tiles.store.location import Location
from infnerf_tiles.store.scene_store import SceneStore


@pytest.fixture(params=["memory", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where a scene may be made; every test that uses it runs for each kind of place."""
    return MemoryStore() if request.param == "memory" else tmp_path / "scene.zarr"


@pytest.fixture
def store(place: Location) -> Iterator[SceneStore]:
    """An empty scene, open for writing."""
    with SceneStore.create(place, header()) as scene:
        yield scene
