"""What the fused decoder must do, against the layers one by one: run by Triton's interpreter and on a GPU alike."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from infnerf_tiles.field.decoder import DENSITY_GAIN, Decoder, decoder_shape
from infnerf_tiles.field.decoder_batch import constants_of
from infnerf_tiles.kernels.cuda import decode, decode_density, decodes


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


@torch.no_grad()
def settled(decoder: Decoder, features: torch.Tensor, basis: torch.Tensor, error: float) -> torch.Tensor:
    """bool [M]: samples of which rounding by `error` opens no rectifier and does not reach the exponent's clamp."""
    first = decoder.density_in(features)
    h = decoder.density_out(first.relu())
    second = decoder.colour_in(torch.cat([h[:, 1:], basis], dim=1))
    third = decoder.colour_mid(second.relu())
    exponent = h[:, :1] + DENSITY_GAIN * features[:, :1] - decoder.shape.density_bias
    kinks = torch.cat([first, second, third, exponent - decoder.shape.max_exponent], dim=1)
    return (kinks.abs() > error).all(dim=1)


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
                features = torch.from_numpy(rng.normal(0.0, 0.5, (rows, size[0]))).float().to(self.device)
                features = (features * inside[:, None]).requires_grad_()
                ray = torch.from_numpy(rng.integers(0, rays, rows).astype(np.int32)).to(self.device)
                basis = torch.from_numpy(rng.normal(size=(rays, 16))).float().to(self.device)
                gradients = torch.from_numpy(rng.normal(size=(rows, 4))).float().to(self.device)
                gradients *= (inside & settled(decoder, features, basis[ray.long()], allowed))[:, None]
                assert used <= 1 or int(gradients.any(dim=1).sum()) > 20
                inputs = [features, *(parameters if learns else [])]
                expected = decoder(features, basis[ray.long()])
                found = decode(
                    features, ray, basis, parameters, count=torch.tensor([used], dtype=torch.int32, device=self.device),
                    **constants_of(decoder), dtype=dtype,
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
                    assert off <= 4 * allowed * scale + 1e-12

    @pytest.mark.parametrize("size", [(8, 64, 15), (4, 16, 15), (32, 32, 31)])
    def test_density_alone_is_that_of_the_layers(self, rng: np.random.Generator, size: tuple[int, int, int]) -> None:
        decoder = random_decoder(rng, *size).to(self.device)
        for dtype, allowed in self.formats.items():
            for rows in (0, 1, 151 * self.scale):
                features = torch.from_numpy(rng.normal(0.0, 0.3, (rows, size[0]))).float().to(self.device)
                found = decode_density(features, parameters_of(decoder), **constants_of(decoder), dtype=dtype)
                with torch.no_grad():
                    assert torch.allclose(found, decoder.density(features)[0], atol=allowed, rtol=10 * allowed)

    @pytest.mark.parametrize("layer", ["density_in", "density_out", "colour_mid"])
    def test_nan_in_a_weight_is_not_hidden(self, rng: np.random.Generator, layer: str) -> None:
        decoder = random_decoder(rng, 8, 16, 15).to(self.device)
        with torch.no_grad():
            getattr(decoder, layer).weight[0] = torch.nan
        features = torch.from_numpy(rng.normal(size=(30, 8))).float().to(self.device)
        ray = torch.zeros(30, dtype=torch.int32, device=self.device)
        sigma, colour = decode(
            features, ray, torch.ones((1, 16), device=self.device), parameters_of(decoder), **constants_of(decoder),
            count=torch.tensor([30], dtype=torch.int32, device=self.device), dtype=torch.float32,
        )  # fmt: skip
        assert bool((torch.isnan(sigma) | torch.isnan(colour).any(dim=1)).all())

    def test_other_shapes_are_left_to_the_layers(self, rng: np.random.Generator) -> None:
        for size in ((8, 24, 15), (8, 64, 14), (8, 128, 15), (5, 64, 15)):
            assert not decodes(parameters_of(random_decoder(rng, *size)))
