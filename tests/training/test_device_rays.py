"""Rays from lens tables against the exact ones; drawn pixels against the pixels there are."""

import numpy as np
import pytest
import torch

from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.geometry.camera import Camera, PosedCameras, project, unproject
from infnerf_tiles.geometry.node_id import RootCube
from infnerf_tiles.geometry.rotation import rotations_from_quaternions
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.device_batch import _basis_of_monomials, direction_monomials
from infnerf_tiles.training.device_pixels import DeviceDepth, DevicePixels
from infnerf_tiles.training.device_rays import DeviceCameras, lens_table
from infnerf_tiles.training.draws import counters, key_of, uniforms
from infnerf_tiles.training.pixels import Patches, PixelSet

CPU = torch.device("cpu")
ROOT = RootCube((-100.0, -50.0, 3.0), 256.0)
LENSES = (
    Camera("PINHOLE", 1920, 1080, (1500.0, 1400.0, 950.0, 545.5)),
    Camera("SIMPLE_PINHOLE", 64, 1, (70.0, 32.0, 0.5)),
    Camera("SIMPLE_RADIAL", 800, 600, (700.0, 400.0, 300.0, -0.12)),
    Camera("RADIAL", 1297, 840, (960.0, 648.5, 420.0, -0.05, 0.02)),
    Camera("OPENCV", 1920, 1440, (1100.0, 1110.0, 955.0, 712.0, -0.28, 0.09, 5e-4, -8e-4)),
    Camera("FULL_OPENCV", 1200, 900, (800.0, 800.0, 610.0, 440.0, 0.1, -0.05, 1e-3, -1e-3, 0.01, 0.11, -0.03, 0.005)),
    Camera("OPENCV_FISHEYE", 1000, 1000, (320.0, 320.0, 500.0, 500.0, 0.03, -0.01, 2e-3, -1e-4)),
)


def posed(rng: np.random.Generator, photos: int = 20) -> PosedCameras:
    """Photos with all the lenses, anywhere and any way up."""
    rotation = rotations_from_quaternions(rng.normal(size=(photos, 4)))
    pose = np.concatenate([rotation, rng.normal(0, 50, (photos, 3, 1))], axis=2)
    return PosedCameras(LENSES, (np.arange(photos) % len(LENSES)).astype(np.int32), pose)


@pytest.mark.parametrize("camera", LENSES, ids=lambda camera: str(camera.model))
def test_no_pixel_is_missed_by_a_fiftieth(camera: Camera, rng: np.random.Generator) -> None:
    cameras = PosedCameras((camera,), np.zeros(1, np.int32), np.eye(3, 4)[None])
    size = np.array([camera.width, camera.height])
    # pixel centres at random, and all the corners
    xy = np.floor(rng.uniform(0, 1, (20000, 2)) * size) + 0.5
    xy[:4] = [[0.5, 0.5], [size[0] - 0.5, 0.5], [0.5, size[1] - 0.5], size - 0.5]
    table = DeviceCameras.of(cameras, ROOT, CPU)
    directions = table.directions(torch.zeros(len(xy), dtype=torch.int64), torch.from_numpy(xy)).numpy()
    back, valid = project(camera, directions)
    assert valid.all()
    assert np.linalg.norm(back - xy, axis=1).max() < 0.02
    assert np.allclose(np.linalg.norm(directions, axis=1), 1.0)
    if "PINHOLE" in camera.model:
        assert np.allclose(directions, unproject(camera, xy), atol=1e-12)
        assert len(lens_table(camera).directions) <= 31 * 18


def test_each_photo_has_its_own_lens_and_pose(rng: np.random.Generator) -> None:
    cameras = posed(rng)
    photo = rng.integers(0, cameras.num_photos, 5000)
    size = np.array([[c.width, c.height] for c in cameras.cameras])[cameras.camera_index[photo]]
    xy = np.floor(rng.uniform(0, 1, (5000, 2)) * size) + 0.5
    origins, directions = cameras.rays(photo, xy)
    on_device = DeviceCameras.of(cameras, ROOT, CPU)
    index = torch.from_numpy(photo)
    assert np.allclose(on_device.unit_centre[index].numpy(), ROOT.to_unit(origins))
    away = np.linalg.norm(on_device.directions(index, torch.from_numpy(xy)).numpy() - directions, axis=1)
    assert (away * cameras.focals[photo]).max() < 0.02
    assert np.array_equal(on_device.focal.numpy(), cameras.focals)


def test_the_basis_as_a_matrix_is_the_basis(rng: np.random.Generator) -> None:
    towards = torch.from_numpy(rng.normal(size=(3000, 3)))
    towards /= towards.norm(dim=1, keepdim=True)
    found = direction_monomials(towards) @ torch.from_numpy(_basis_of_monomials())
    assert torch.allclose(found, direction_basis(towards), atol=2e-6)


def test_random_numbers_are_those_of_splitmix() -> None:
    key = key_of((3, 1 << 60, 0), 17)
    found = uniforms(torch.tensor([key]), counters(3, 50, CPU, behind=7)).ravel().tolist()

    def mixed(counter: int) -> float:
        mask = (1 << 64) - 1
        z = (key + counter * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    assert found == [mixed(k) for k in range(8, 158)]


def test_random_numbers_are_uniform_and_follow_seed_and_step(rng: np.random.Generator) -> None:
    seed = tuple(rng.integers(0, 1 << 40, 2).tolist())
    counter = counters(4, 50_000, CPU)
    u = uniforms(torch.tensor([key_of(seed, 5)]), counter)
    assert 0.0 <= float(u.min()) < float(u.max()) < 1.0
    counts = torch.histc(u.float(), 100, 0.0, 1.0)
    assert float((counts - 2000).abs().max()) < 6 * 2000**0.5
    assert abs(float(torch.corrcoef(u)[0, 1])) < 0.03
    assert torch.equal(u, uniforms(torch.tensor([key_of(seed, 5)]), counter))
    assert not torch.equal(u, uniforms(torch.tensor([key_of(seed, 6)]), counter))
    assert not torch.equal(u, uniforms(torch.tensor([key_of((*seed, 1), 5)]), counter))


def pixel_set(rng: np.random.Generator) -> PixelSet:
    """Patches of three pyramid levels, many of them partly invalid, in no order."""
    n = 60
    patches = Patches(
        photo=rng.integers(0, 9, n).astype(np.int32),
        pyramid=rng.integers(0, 3, n).astype(np.int32),
        column=np.arange(n, dtype=np.int32),
        row=rng.integers(0, 5, n).astype(np.int32),
    )
    valid = rng.random((n, 16, 16)) < rng.choice([0.02, 0.5, 1.0], (n, 1, 1))
    valid[:, 3, 7] = True
    return PixelSet(patches, rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), valid)


def test_pixels_are_drawn_evenly_from_the_valid_ones(rng: np.random.Generator) -> None:
    pixels = pixel_set(rng)
    on_device = DevicePixels(pixels, CPU)
    for finest in (0, 1, 2, 7):
        coarse = pixels.patches.pyramid >= min(finest, 2)
        total = int(pixels.valid[coarse].sum())
        # one draw in the middle of each pixel's share meets each exactly once
        u = (torch.arange(total, dtype=torch.float64) + 0.5) / total
        drawn = on_device.draw(u, torch.tensor([finest]))
        scale = np.exp2(drawn.pyramid.numpy())[:, None]
        at = drawn.xy.numpy() / scale
        patch = (at[:, 0] // 16).astype(int)  # each patch has a column of its own
        p = pixels.patches
        assert np.array_equal(p.photo[patch], drawn.photo.numpy())
        assert np.array_equal(p.pyramid[patch], drawn.pyramid.numpy())
        x = (at[:, 0] - 16 * p.column[patch]).astype(int)
        y = (at[:, 1] - 16 * p.row[patch]).astype(int)
        assert np.allclose(at % 1.0, 0.5)
        assert pixels.valid[patch, y, x].all()
        assert len(np.unique((patch * 16 + y) * 16 + x)) == total
        assert np.allclose(drawn.rgb.numpy() * 255, pixels.rgb[patch, y, x])
        assert coarse[patch].all()
    last = on_device.draw(torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64), torch.tensor([0]))
    assert int(last.pyramid) == 2


def test_rays_to_points_start_at_cameras_that_saw_them(rng: np.random.Generator) -> None:
    centres, xyz = rng.normal(size=(9, 3)), rng.normal(size=(40, 3)) + 5.0
    targets = DepthTargets(centres, rng.integers(0, 9, 40).astype(np.int32), xyz)
    u = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    photo, direction, distance = DeviceDepth(targets, CPU).draw(u, torch.from_numpy(centres))
    assert np.array_equal(photo.numpy(), targets.photo)
    assert np.allclose(centres[photo.numpy()] + (direction * distance[:, None]).numpy(), xyz)
    assert torch.allclose(direction.norm(dim=1), torch.ones(40, dtype=torch.float64))
