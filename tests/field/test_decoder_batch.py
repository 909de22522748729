"""The decoder on large batches against the decoder itself."""

import numpy as np
import pytest
import torch
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.decoder_batch import decode_batch, decode_samples, density_of


class Inverted(Decoder):
    """A decoder of the user's own."""

    def colour(self, geometry: Tensor, basis: Tensor) -> Tensor:
        return 1.0 - super().colour(geometry, basis)


def new(kind: type[Decoder]) -> Decoder:
    shape = decoder_shape(
        features=8, hidden=32, geometry_features=15, density_bias=3.0, gsd_ref=2.0, gsd_finest=0.1
    )
    return kind(shape, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Decoder, Inverted])
def test_it_gives_values_and_gradients_of_the_decoder(kind: type[Decoder], rng: np.random.Generator) -> None:
    decoder = new(kind)
    features = torch.from_numpy(rng.normal(size=(300, 8))).float().requires_grad_()
    basis, ray = torch.from_numpy(rng.normal(size=(20, 16))).float(), torch.from_numpy(rng.integers(0, 20, 300)).int()
    count = torch.tensor([300], dtype=torch.int32)
    inputs = [features, *decoder.parameters()]
    toward = torch.from_numpy(rng.normal(size=(300, 4))).float()
    results = []
    for sigma, colour in (
        decoder(features, basis[ray.long()]),
        decode_samples(decoder, features, ray, basis, count, torch.float32),
    ):
        slopes = torch.autograd.grad((sigma * toward[:, 0]).sum() + (colour * toward[:, 1:]).sum(), inputs)
        results.append([sigma.detach(), colour.detach(), *slopes])
    for a, b in zip(*results, strict=True):
        # as a whole: sums of different order may differ on which side of its kink a rectifier is
        assert (a - b).norm() <= 1e-3 * a.norm()


@pytest.mark.parametrize("kind", [Decoder, Inverted])
def test_bfloat16_is_near(kind: type[Decoder], rng: np.random.Generator) -> None:
    decoder = new(kind)
    features = torch.from_numpy(rng.normal(0.0, 0.5, (300, 8))).float()
    basis = torch.from_numpy(rng.normal(size=(300, 16)))
    with torch.no_grad():
        sigma, colour = decode_batch(decoder, features, basis.bfloat16(), torch.bfloat16)
        expected = decoder(features, basis.float())
    assert sigma.dtype == colour.dtype == torch.float32
    assert torch.allclose(sigma.log(), expected[0].log(), atol=0.1)
    assert torch.allclose(colour, expected[1], atol=0.1)


@pytest.mark.parametrize("kind", [Decoder, Inverted])
def test_density_alone_is_the_decoders(kind: type[Decoder], rng: np.random.Generator) -> None:
    decoder = new(kind)
    features = torch.from_numpy(rng.normal(size=(5000, 8))).float()
    with torch.no_grad():
        expected = decoder.density(features)[0]
    assert torch.allclose(density_of(decoder, features, torch.float32), expected, rtol=1e-5)


@pytest.mark.parametrize("used", [0, 1, 4096, 4500])
def test_rows_in_use_alone_count(used: int, rng: np.random.Generator) -> None:
    """Whole blocks, a part of one, none: what is not in use is zero and teaches nothing."""
    decoder = new(Decoder)
    features = torch.from_numpy(rng.normal(size=(5000, 8))).float().requires_grad_()
    basis, ray = torch.from_numpy(rng.normal(size=(20, 16))).float(), torch.from_numpy(rng.integers(0, 20, 5000)).int()
    count = torch.tensor([used], dtype=torch.int32)
    inputs = [features, *decoder.parameters()]
    sigma, colour = decode_samples(decoder, features, ray, basis, count, torch.float32)
    assert not sigma[used:].any()
    assert not colour[used:].any()
    slopes = torch.autograd.grad(sigma.sum() + colour.square().sum(), inputs)
    expected = decoder(features[:used], basis[ray[:used].long()])
    for a, b in zip(expected, (sigma, colour), strict=True):
        assert torch.allclose(a, b[:used], rtol=1e-4, atol=1e-6)
    wanted = torch.autograd.grad(expected[0].sum() + expected[1].square().sum(), inputs)
    for a, b in zip(wanted, slopes, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()
