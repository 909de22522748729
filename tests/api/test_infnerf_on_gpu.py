"""The model on a CUDA device: what it sees, its gradients and its training are those of the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from api.api_models import TINY, ball_photos, some_rays, tiny_model

from infnerf_tiles import InfNeRF, InfNeRFConfig, InfNeRFRenderer, InfNeRFTrainer, InfNeRFTrainerConfig

pytestmark = pytest.mark.gpu


def test_colours_and_gradients_agree_with_the_cpu() -> None:
    rays, photo = some_rays(64), torch.zeros(64, dtype=torch.int64)
    here, there = tiny_model(seed=4, num_photos=1), tiny_model(seed=4, num_photos=1).to("cuda")
    found = []
    for model in (here, there):
        out = model(*rays, 0.05, 10.0, 40.0, photo=photo)
        (out["rgb"].sum() + out["depth"].sum()).backward()
        found.append(out)
    torch.testing.assert_close(found[0]["rgb"], found[1]["rgb"].cpu(), rtol=1e-3, atol=1e-4)
    for (name, a), (_, b) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert b.grad.device.type == "cuda"
        scale = float(a.grad.abs().max())
        assert float((a.grad - b.grad.cpu()).abs().max()) < 5e-3 * scale, name


def test_a_model_trains_draws_and_comes_back(tmp_path: Path) -> None:
    photos = ball_photos(12, 32)
    model = InfNeRF(InfNeRFConfig(**{**TINY, "num_samples": 48, "background": "black"})).to("cuda")
    config = InfNeRFTrainerConfig(max_steps=200, rays_batch_size=256, lr_init=2e-2, ckpt_dir=str(tmp_path))
    trainer = InfNeRFTrainer(model, photos, config)
    first = trainer.validate()["psnr"]
    assert trainer.train()["psnr"] > first + 3.0
    assert model.num_nodes > 1
    pose, camera = photos.cameras.camera_to_world[0], photos.cameras.camera(0)
    drawn = InfNeRFRenderer(model).render_image(pose, camera)
    again = InfNeRFRenderer.from_checkpoint(tmp_path / "last.pth").render_image(pose, camera)
    assert float((drawn["rgb"] - again["rgb"]).abs().max()) < 0.05
    assert np.isfinite(drawn["rgb"].numpy()).all()
