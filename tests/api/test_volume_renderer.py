"""`VolumeRenderer` against closed forms and a double loop."""

import math

import pytest
import torch
from api.api_models import some_rays, tiny_model

from infnerf_tiles.api import VolumeRenderer, VolumeRendererConfig
from infnerf_tiles.errors import SettingsError


def test_a_homogeneous_medium_follows_beer_and_lambert() -> None:
    z = torch.linspace(1.0, 3.0, 201, dtype=torch.float64).expand(2, 201)
    sigma = torch.full((2, 201, 1), 0.7, dtype=torch.float64)
    sigma[:, -1] = 0.0  # the last interval has no end
    colors = torch.full((2, 201, 3), 0.4, dtype=torch.float64)
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    out = VolumeRenderer().volume_render(colors, sigma, z, directions)
    expected = [1.0 - math.exp(-0.7 * 2.0), 1.0 - math.exp(-0.7 * 4.0)]
    torch.testing.assert_close(out["alpha"], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(out["rgb"][:, 0], 0.4 * out["alpha"])
    torch.testing.assert_close(out["weights"].sum(dim=1), out["alpha"])


def test_an_opaque_sample_hides_what_is_behind_it() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0]])
    sigma = torch.tensor([[0.0, 1e6, 5.0]])
    colors = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]])
    out = VolumeRenderer(VolumeRendererConfig(white_background=True)).volume_render(
        colors, sigma, z, torch.tensor([[0.0, 3.0, 0.0]])
    )
    torch.testing.assert_close(out["rgb"], torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(out["depth"], torch.tensor([6.0]))


def test_gradients_of_volume_rendering() -> None:
    torch.manual_seed(0)
    colors = torch.rand(3, 5, 3, dtype=torch.float64, requires_grad=True)
    sigma = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    z = torch.rand(3, 5, dtype=torch.float64).cumsum(1) + 0.1
    directions = torch.randn(3, 3, dtype=torch.float64)

    def f(c: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = VolumeRenderer().volume_render(c, s * torch.tensor([1, 1, 1, 1, 0.0]), z, directions)
        return out["rgb"], out["depth"], out["weights"]

    assert torch.autograd.gradcheck(f, (colors, sigma))


def test_losses_in_closed_form() -> None:
    weights = {"lambda_rgb": 2.0, "lambda_depth": 0.5, "lambda_distortion": 3.0, "lambda_transparency": 7.0}
    renderer = VolumeRenderer(VolumeRendererConfig(**weights, loss="mse"))  # type: ignore[arg-type]
    torch.manual_seed(1)
    z = torch.rand(4, 6, dtype=torch.float64).cumsum(1) + 0.5
    directions = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)
    sigma = torch.rand(4, 6, dtype=torch.float64)
    out = renderer.volume_render(torch.rand(4, 6, 3, dtype=torch.float64), sigma, z, directions)
    out["random_densities"] = torch.tensor([0.0, 2.0], dtype=torch.float64)
    out["random_gsd"] = torch.tensor([1.0, 0.5], dtype=torch.float64)
    depth = torch.tensor([2.0, math.nan, 0.0, 4.0])
    target = torch.rand(4, 3, dtype=torch.float64)
    terms = renderer.compute_losses(out, {"rgb": target, "depth": depth})
    assert float(terms["rgb"]) == pytest.approx(float(((out["rgb"] - target) ** 2).mean()))
    miss = (abs(float(out["depth"][0]) - 2.0) / 2.0 + abs(float(out["depth"][3]) - 4.0) / 4.0) / 2.0
    assert float(terms["depth"]) == pytest.approx(miss)
    assert float(terms["transparency"]) == pytest.approx((1.0 - math.exp(-1.0)) / 2.0)
    # every pair of samples
    distortion = 0.0
    for ray in range(4):
        w, s = out["weights"][ray], out["t"][ray].log()
        distortion += sum(float(w[i] * w[j] * (s[i] - s[j]).abs()) for i in range(6) for j in range(6))
        distortion += sum(float(w[i] ** 2 * out["dt"][ray, i] / out["t"][ray, i]) for i in range(6)) / 3.0
    assert float(terms["distortion"]) == pytest.approx(distortion / 4.0)
    weighted = 2.0 * terms["rgb"] + 0.5 * terms["depth"] + 3.0 * terms["distortion"] + 7.0 * terms["transparency"]
    torch.testing.assert_close(terms["total"], weighted)


def test_losses_of_a_model_are_those_of_its_weights() -> None:
    model = tiny_model(seed=2)
    out = model(*some_rays(12), focal_length=30.0)
    terms = VolumeRenderer().compute_losses(out, torch.zeros(12, 3))
    assert set(terms) == {"rgb", "distortion", "total"}
    samples, total = out["samples"], 0.0
    for ray in range(12):
        own = slice(int(samples.ray_start[ray]), int(samples.ray_start[ray + 1]))
        w, s = out["weights"][own].detach().double(), samples.t[own].double().log()
        total += float((w[:, None] * w[None] * (s[:, None] - s[None]).abs()).sum())
        total += float((w**2 * (samples.dt[own] / samples.t[own])).sum() / 3.0)
    assert float(terms["distortion"].detach()) == pytest.approx(total / 12.0, rel=1e-4)


def test_wrong_shapes_and_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="lambda_depth"):
        VolumeRendererConfig(lambda_depth=-1.0)
    with pytest.raises(ValueError, match="expected colors"):
        VolumeRenderer().volume_render(torch.zeros(2, 3, 3), torch.zeros(2, 4), torch.ones(2, 4), torch.ones(2, 3))
    with pytest.raises(SettingsError, match="targets rgb"):
        VolumeRenderer().compute_losses({"rgb": torch.zeros(4, 3)}, torch.zeros(5, 3))
