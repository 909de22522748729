"""Level of detail against aliasing: small pictures of a trained scene, with and without it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infnerf_tiles import (
    InfNeRF,
    InfNeRFTrainer,
    InfNeRFTrainerConfig,
    RayBatch,
    VolumeRendererConfig,
    config_for_photos,
    read_dataset,
)
from infnerf_tiles.arrays import Float32, Float64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.data.photos import decode_masked_photo, reduce_box
from infnerf_tiles.geometry.camera import Camera, unproject
from infnerf_tiles.kernels import for_device
from infnerf_tiles.metrics import psnr
from infnerf_tiles.synthetic.capture import CityPhotographer, SyntheticDataset, write_city_dataset

SCALES = (1, 2, 4, 8)
FINEST = 20.0
"""Level-of-detail bias that makes every sample use the finest node."""


class EvenLevels:
    """Rays of all pyramid levels down to 1/8, many of the coarse ones, with the city's true depth at the finest."""

    def __init__(self, city: SyntheticDataset, photos: PosedPhotos):
        self.photos, self.rows = photos, np.flatnonzero(~photos.is_test)
        rgb = [decode_masked_photo(photos.photo_file(int(row))).rgb for row in self.rows]
        self.levels = [np.stack([reduce_box(image, scale) for image in rgb]) for scale in SCALES]
        self.depth = np.stack([city.depth(int(row)) for row in self.rows])

    def sample(self, rng: np.random.Generator, count: int, progress: float) -> RayBatch:
        """0.4, 0.25, 0.2 and 0.15 of the rays from the four levels."""
        level = np.sort(rng.choice(len(SCALES), count, p=(0.4, 0.25, 0.2, 0.15)))
        scale = 1 << level
        size = np.array([self.levels[p].shape[1:3] for p in range(len(SCALES))])[level]
        photo = rng.integers(0, len(self.rows), count)
        y, x = (rng.random((count, 2)) * size).astype(np.int64).T
        rgb = [self.levels[p][photo[k], y[k], x[k]] for p in range(len(SCALES)) for k in [level == p]]
        depth = np.where(level == 0, self.depth[photo, y * (level == 0), x * (level == 0)], np.nan)
        row = self.rows[photo]
        places = np.stack([(x + 0.5) * scale, (y + 0.5) * scale], axis=1)
        origins, directions = self.photos.cameras.rays(row, places)
        return RayBatch(
            rays_o=torch.tensor(origins),
            rays_d=torch.tensor(directions),
            rgb=torch.tensor(np.concatenate(rgb).astype(np.float32) / 255.0),
            focal_length=torch.tensor(self.photos.cameras.focals[row]),
            pixel_width=torch.tensor(scale.astype(np.float64)),
            photo=torch.tensor(row),
            depth=torch.tensor(depth),
        )


def _draw(model: InfNeRF, camera: Camera, pose: Float64, bias: float) -> tuple[Float32, float]:
    """The picture and its samples per ray; every step of the lattice counts, whatever the level."""
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    directions = torch.tensor(unproject(camera, np.stack([x.ravel(), y.ravel()], axis=1)) @ pose[:, :3].T)
    origins = torch.tensor(pose[:, 3].copy()).expand(len(directions), 3)
    kernels, arena = for_device(model.device), model.arena()
    if bias:
        arena = replace(arena, lambda_max=torch.full_like(arena.lambda_max, 1e9))
    with model.evaluating():
        rays, basis = model.make_rays(origins, directions, camera.focal)
        samples = kernels.march(rays, arena, model.lattice(None, bias))
        sigma, colour = model.shade_fixed(samples, basis)
        rgb, transmittance, _, _ = kernels.composite(
            samples.ray_start, sigma, colour, samples.t, samples.dt, stop=1e-3
        )
        rgb = rgb + transmittance[:, None] * model.background(basis)
    picture = rgb.numpy().reshape(camera.height, camera.width, 3)
    return picture.clip(0.0, 1.0), samples.count / len(directions)


@pytest.mark.slow
def test_level_of_detail_is_better_than_the_finest_level_in_small_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    city = write_city_dataset(
        tmp_path / "city", blocks=(1, 1), num_photos=16, size=(192, 144), seed=5, supersample=2, exposure=0.0
    )
    photos = read_dataset(tmp_path / "city")
    model = InfNeRF(config_for_photos(photos, hidden_dim=32, num_samples=48))
    config = InfNeRFTrainerConfig(
        max_steps=700, rays_batch_size=1024, lr_init=2e-2, eval_freq=0, ckpt_dir=str(tmp_path)
    )
    volume = VolumeRendererConfig(lambda_distortion=0.0, lambda_transparency=0.0)
    InfNeRFTrainer(model, photos, config, volume=volume, sampler=EvenLevels(city, photos)).train()
    model.eval()
    photographer = CityPhotographer(city.city, 3)
    found: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for row in np.flatnonzero(photos.is_test).tolist():
        camera, pose = photos.cameras.camera(row), photos.cameras.camera_to_world[row]
        full = photographer.photo(camera, pose)
        for scale in SCALES:
            small = camera.scaled_down(scale)
            truth = full.reshape(small.height, scale, small.width, scale, 3).mean(axis=(1, 3)).astype(np.float32)
            for bias in (0.0, FINEST):
                picture, samples = _draw(model, small, pose, bias)
                found.setdefault((scale, bias), []).append((psnr(picture, truth), samples))
    mean = {key: np.mean(values, axis=0) for key, values in found.items()}
    with capsys.disabled():
        for scale in SCALES:
            (with_lod, a), (without, b) = mean[scale, 0.0], mean[scale, FINEST]
            line = f"1/{scale}: {with_lod:.2f} dB with level of detail, {without:.2f} dB at the finest level"
            print(f"\n{line} ({a:.1f} and {b:.1f} samples per ray)", end="")  # noqa: T201
    assert mean[4, 0.0][0] >= mean[4, FINEST][0] + 2.0
    assert mean[8, 0.0][0] >= mean[8, FINEST][0] + 2.0
    # at full size the finest level is what level of detail draws nearly everywhere
    assert abs(mean[1, 0.0][0] - mean[1, FINEST][0]) < 0.5
    # the comparison gives both the same steps
    assert mean[8, FINEST][1] > 0.7 * mean[8, 0.0][1]
