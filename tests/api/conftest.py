"""Data for the tests of the Python API."""

from dataclasses import replace

import numpy as np
import pytest

from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.synthetic.capture import write_city_dataset


@pytest.fixture(scope="session")
def city_photos(tmp_path_factory: pytest.TempPathFactory) -> PosedPhotos:
    """Ten photos of 64 x 48 pixels of one block of the synthetic city, metres."""
    folder = tmp_path_factory.mktemp("api_city")
    write_city_dataset(folder, blocks=(1, 1), num_photos=10, size=(64, 48), seed=3, supersample=1)
    return read_dataset(folder)


@pytest.fixture(scope="session")
def unit_city(city_photos: PosedPhotos) -> PosedPhotos:
    """The same in units in which its sparse points lie within [-1, 1]^3."""
    assert city_photos.points is not None
    scale = 1.0 / np.abs(city_photos.points.xyz).max()
    poses = city_photos.cameras.camera_to_world.copy()
    poses[:, :, 3] *= scale
    cameras = PosedCameras(city_photos.cameras.cameras, city_photos.cameras.camera_index, poses)
    points = replace(city_photos.points, xyz=city_photos.points.xyz * scale)
    return replace(city_photos, cameras=cameras, points=points)
