"""What researchers extend, each as they would write it: the code between the marks is theirs, at most 25 lines."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from api.api_models import TINY, ball_photos
from torch import Tensor, nn

from infnerf_tiles import (
    CameraPath,
    InfNeRF,
    InfNeRFConfig,
    InfNeRFRenderer,
    InfNeRFRendererConfig,
    InfNeRFTrainer,
    InfNeRFTrainerConfig,
    OctreeGrid,
    PhotoSampler,
    RayBatch,
)

CONFIG = InfNeRFConfig(**{**TINY, "background": "black"})
PHOTOS = ball_photos(8, 24)
SHORT = {"max_steps": 30, "rays_batch_size": 128, "eval_freq": 0, "lr_init": 2e-2}


def _short(folder: Path) -> InfNeRFTrainerConfig:
    return InfNeRFTrainerConfig(**SHORT, ckpt_dir=str(folder))  # type: ignore[arg-type]


def decoder_of_ones_own(folder: Path) -> None:
    """A network without view dependence."""

    # user code
    class DiffuseDecoder(nn.Module):
        def __init__(self, features: int, hidden: int = 32):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 3))

        def density(self, features: Tensor) -> tuple[Tensor, Tensor]:
            return torch.exp((4.0 * features[:, 0] - 1.0).clamp(max=8.0)), features

        def forward(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
            sigma, _ = self.density(features)
            return sigma, torch.sigmoid(self.net(features))

    model = InfNeRF(CONFIG, decoder=DiffuseDecoder(CONFIG.features))
    trainer = InfNeRFTrainer(model, PHOTOS, _short(folder))
    trainer.train()
    again = InfNeRF(CONFIG, decoder=DiffuseDecoder(CONFIG.features))
    renderer = InfNeRFRenderer.from_checkpoint(folder / "last.pth", model=again)
    # end of user code
    _learned(trainer)
    assert any(p.grad is not None for p in model.decoder.parameters())
    pose, camera = PHOTOS.cameras.camera_to_world[0], PHOTOS.cameras.camera(0)
    first, second = InfNeRFRenderer(model).render_image(pose, camera), renderer.render_image(pose, camera)
    assert torch.equal(first["rgb"], second["rgb"])


def feature_grid_of_ones_own(folder: Path) -> None:
    """Three planes in place of the octree's tables."""

    # user code
    class TriPlanes(nn.Module):
        def __init__(self, features: int, size: int = 32):
            super().__init__()
            self.planes = nn.Parameter(torch.zeros(3, features, size, size))

        def forward(self, position: Tensor, slot: Tensor, beta: Tensor, arena: Any, known: Any = None) -> Tensor:
            at = 2.0 * position - 1.0  # of one treelet: the root cube
            total = torch.zeros(len(at), self.planes.shape[1])
            for plane, axes in zip(self.planes, ((0, 1), (0, 2), (1, 2)), strict=True):
                places = at[:, axes][None, :, None]
                found = nn.functional.grid_sample(plane[None], places, align_corners=True)
                total = total + found[0, :, :, 0].T
            return total

    model = InfNeRF(CONFIG, grid=TriPlanes(CONFIG.features))
    trainer = InfNeRFTrainer(model, PHOTOS, _short(folder))
    trainer.train()
    picture = InfNeRFRenderer(model).render_image(PHOTOS.cameras.camera_to_world[0], PHOTOS.cameras.camera(0))
    # end of user code
    _learned(trainer)
    assert not isinstance(model.grid, OctreeGrid)
    assert float(picture["alpha"].max()) > 0.1


def loss_of_ones_own(folder: Path) -> None:
    """Opacity is to be all or nothing."""

    # user code
    def all_or_nothing(outputs: dict[str, Any], batch: RayBatch) -> Tensor:
        alpha = outputs["alpha"].clamp(1e-4, 1.0 - 1e-4)
        return 0.05 * -(alpha * alpha.log() + (1.0 - alpha) * (1.0 - alpha).log()).mean()

    model = InfNeRF(CONFIG)
    trainer = InfNeRFTrainer(model, PHOTOS, _short(folder), losses={"all_or_nothing": all_or_nothing})
    losses = trainer.train_step()
    trainer.train()
    # end of user code
    assert losses["all_or_nothing"] > 0.0
    plain = InfNeRFTrainer(InfNeRF(CONFIG), PHOTOS, _short(folder)).train_step()
    assert losses["total"] == pytest.approx(plain["total"] + losses["all_or_nothing"], rel=1e-4)
    _learned(trainer)


def camera_path_of_ones_own(folder: Path) -> None:
    """A straight dolly, as a film with its depth beside it."""
    model = InfNeRF(CONFIG)
    # user code
    poses = np.tile(np.eye(3, 4), (4, 1, 1))
    poses[:, :, 3] = [[0.0, 0.0, z] for z in np.linspace(-3.0, -2.0, 4)]
    config = InfNeRFRendererConfig(image_width=32, image_height=24, save_depth=True)
    renderer = InfNeRFRenderer(model, config)
    files = renderer.render_video(poses, 40.0, folder / "dolly.mp4")
    # or with a speed and a camera of its own
    camera = PHOTOS.cameras.camera(0)
    path = CameraPath(camera=camera, camera_to_world=poses, times=np.arange(4) / 10.0)
    frames = renderer.render_video(path, None, folder / "frames")
    # end of user code
    assert [f.name for f in files] == ["dolly.mp4", "dolly_depth.mp4"]
    assert all(f.stat().st_size > 0 for f in files)
    assert len(list(frames[0].glob("*.png"))) == 4


def sampler_of_ones_own(folder: Path) -> None:
    """Rays of the pixels where the photos are bright, twice as often."""

    # user code
    class BrightSampler(PhotoSampler):
        def sample(self, rng: np.random.Generator, count: int, progress: float) -> RayBatch:
            batch = super().sample(rng, 2 * count, progress)
            brightness = batch.rgb.mean(dim=1).double().numpy() + 0.05
            rows = rng.choice(2 * count, count, replace=False, p=brightness / brightness.sum())
            rows = torch.from_numpy(rows)
            columns = ("rays_o", "rays_d", "rgb", "focal_length", "pixel_width", "photo")
            return RayBatch(**{name: getattr(batch, name)[rows] for name in columns})

    sampler = BrightSampler(PHOTOS)
    trainer = InfNeRFTrainer(InfNeRF(CONFIG), PHOTOS, _short(folder), sampler=sampler)
    trainer.train()
    # end of user code
    rng = np.random.default_rng(0)
    plain = PhotoSampler(PHOTOS).sample(rng, 500, 1.0).rgb.mean()
    assert float(sampler.sample(rng, 500, 1.0).rgb.mean()) > 1.2 * float(plain)
    _learned(trainer)


def tensors_of_ones_own(folder: Path) -> None:
    """Rays and colours that come from anywhere, without photos."""

    # user code
    class MyRays:
        num_rays = 4096

        def __init__(self) -> None:
            generator = torch.Generator().manual_seed(0)
            self.origins = 2.5 * nn.functional.normalize(torch.randn(4096, 3, generator=generator), dim=1)
            self.directions = 0.4 * torch.randn(4096, 3, generator=generator) - self.origins
            closest = torch.linalg.cross(self.origins, nn.functional.normalize(self.directions, dim=1)).norm(dim=1)
            self.colours = (closest < 0.5).float()[:, None] * torch.tensor([0.9, 0.5, 0.1])

        def sample(self, rng: np.random.Generator, count: int, progress: float) -> RayBatch:
            rows = torch.from_numpy(rng.integers(0, 4096, count))
            rays = {"rays_o": self.origins[rows], "rays_d": self.directions[rows], "rgb": self.colours[rows]}
            return RayBatch(**rays, focal_length=60.0)

    model = InfNeRF(CONFIG)
    trainer = InfNeRFTrainer(model, MyRays(), _short(folder))
    trainer.train()
    # end of user code
    _learned(trainer)


def _learned(trainer: InfNeRFTrainer) -> None:
    assert trainer.step == 30
    assert np.isfinite(trainer.recent_error)
    assert trainer.recent_error < 0.12


EXAMPLES: dict[Callable[[Path], None], int] = {
    decoder_of_ones_own: 25,
    feature_grid_of_ones_own: 25,
    loss_of_ones_own: 25,
    camera_path_of_ones_own: 25,
    sampler_of_ones_own: 25,
    tensors_of_ones_own: 20,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.__name__))
def test_the_example_works_in_few_lines(example: Callable[[Path], None], tmp_path: Path) -> None:
    found = re.search(r"# user code\n(.*)# end of user code", inspect.getsource(example), re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.strip()]
    assert len(lines) <= EXAMPLES[example]
    example(tmp_path)
