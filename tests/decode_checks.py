"""What the fused decoder must do, against the layers one by one: run by Triton's interpreter and on a GPU alike."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from infnerf_tiles.field.decoder import DENSITY_GAIN, Decoder, decoder_shape
from infnerf_tiles.kernels.cuda import decode, decodes


def random_decoder(rng: np.random.Generator, features: int, hidden: int, geometry: int) -> Decoder:
    """A decoder with random biases too, whose clamp some samples reach."""
    shape = decoder_shape(
        features=features, hidden=hidden, geometry_features=geometry, density_bias=3.0, gsd_ref=2.0, gsd_finest=1.0
    )
    decoder = Decoder(shape, torch.Generator().manual_seed(int(rng.integers(1 << 30))))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += torch.from_numpy(rng.normal(0.0, 0.1, tuple(parameter.shape))).float()
    return decoder


def parameters_of(decoder: Decoder) -> list[torch.Tensor]:
    layers = (decoder.density_in, decoder.density_out, decoder.colour_in, decoder.colour_mid, decoder.colour_out)
    return [p for layer in layers for p in (layer.weight, layer.bias)]


class DecodeChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]
    formats: ClassVar[dict[torch.dtype, float]]
    """Formats of the products and the relative error that each may have."""

    @pytest.mark.parametrize("size", [(8, 64, 15), (4, 16, 15), (32, 32, 31)])
    @pytest.mark.parametrize("learns", [True, False])
    def test_values_and_gradients_are_those_of_the_layers(
        self, rng: np.random.Generator, size: tuple[int, int, int], learns: bool
    ) -> None:
        decoder = random_decoder(rng, *size).to(self.device).requires_grad_(learns)
        parameters = parameters_of(decoder)
        assert decodes(parameters)
        rows, rays = 151 * self.scale, 20
        for dtype, allowed in self.formats.items():
            for used in (0, 1, rows - 17):
                inside = torch.arange(rows, device=self.device) < used
                # near the clamp of the exponent, rounding decides whether a gradient passes
                spread = 1.0 if dtype == torch.float32 else 0.3
                features = torch.from_numpy(rng.normal(0.0, spread, (rows, size[0]))).float().to(self.device)
                features = (features * inside[:, None]).requires_grad_()
                ray = torch.from_numpy(rng.integers(0, rays, rows).astype(np.int32)).to(self.device)
                basis = torch.from_numpy(rng.normal(size=(rays, 16))).float().to(self.device)
                gradients = torch.from_numpy(rng.normal(size=(rows, 4))).float().to(self.device) * inside[:, None]
                inputs = [features, *(parameters if learns else [])]
                expected = decoder(features, basis[ray.long()])
                found = decode(
                    features, ray, basis, parameters, count=torch.tensor([used], dtype=torch.int32, device=self.device),
                    gain=DENSITY_GAIN, bias=decoder.shape.density_bias, max_exponent=decoder.shape.max_exponent,
                    gsd_ref=decoder.shape.gsd_ref, dtype=dtype,
                )  # fmt: skip
                for mine, theirs in zip(found, expected, strict=True):
                    assert not bool(mine[used:].any())
                    assert torch.allclose(mine[:used], theirs[:used], atol=allowed, rtol=10 * allowed)
                slopes = [
                    torch.autograd.grad((s * gradients[:, 0]).sum() + (c * gradients[:, 1:]).sum(), inputs)
                    for s, c in (found, expected)
                ]
                for mine, theirs in zip(*slopes, strict=True):
                    scale = float(theirs.norm()) / max(1, theirs.numel()) ** 0.5
                    off = float((mine - theirs).norm()) / max(1, theirs.numel()) ** 0.5
                    # a rectifier on its kink may open for one and not the other: rare among many rows
                    assert off <= min(20 * allowed, 0.2) * scale + 1e-12 or (used == 1 and dtype != torch.float32)

    def test_other_shapes_are_left_to_the_layers(self, rng: np.random.Generator) -> None:
        for size in ((8, 24, 15), (8, 64, 14), (8, 128, 15), (5, 64, 15)):
            assert not decodes(parameters_of(random_decoder(rng, *size)))
