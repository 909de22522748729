"""The decoder's formulas, its arrays, and the direction basis."""

import math

import numpy as np
import pytest
import torch

from infnerf_tiles.field.decoder import DENSITY_GAIN, DIRECTION_BASIS, Decoder, DecoderShape, direction_basis

SHAPE = DecoderShape(features=8, hidden=64, geometry_features=15, gsd_ref=0.25, density_bias=5.0, max_exponent=9.0)


def make(seed: int = 0) -> Decoder:
    return Decoder(SHAPE, torch.Generator().manual_seed(seed))


def test_shapes_and_ranges(rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.normal(size=(50, 8))).float()
    basis = torch.from_numpy(rng.normal(size=(50, DIRECTION_BASIS))).float()
    sigma, colour = make()(features, basis)
    assert sigma.shape == (50,)
    assert colour.shape == (50, 3)
    assert (sigma > 0).all()
    assert ((colour > 0) & (colour < 1)).all()
    density, geometry = make().density(features)
    assert torch.equal(density, sigma)
    assert torch.equal(make().colour(geometry, basis), colour)


def test_density_is_the_exponential_of_a_linear_channel(rng: np.random.Generator) -> None:
    decoder = make()
    features = torch.from_numpy(rng.uniform(-0.5, 0.5, (20, 8))).float()
    with torch.no_grad():
        decoder.density_in.weight[:, 0] = 0.0  # leaves the direct path of f_0 alone
    shifted = features.clone()
    shifted[:, 0] += 1.5
    ratio = decoder.density(shifted)[0] / decoder.density(features)[0]
    torch.testing.assert_close(ratio, torch.full((20,), math.exp(1.5 * DENSITY_GAIN)), rtol=1e-5, atol=0.0)
    with torch.no_grad():
        decoder.density_out.weight[0], decoder.density_out.bias[0] = 0.0, 0.0
    expected = torch.exp(DENSITY_GAIN * features[:, 0] - 5.0) / 0.25
    torch.testing.assert_close(decoder.density(features)[0], expected, rtol=1e-5, atol=0.0)


def test_density_is_clamped() -> None:
    features = torch.zeros(1, 8)
    features[0, 0] = 1000.0
    sigma, _ = make().density(features)
    assert sigma.item() == pytest.approx(math.exp(9.0) / 0.25)


def test_a_fresh_scene_is_nearly_transparent() -> None:
    """Over a ray of 500 steps of one GSD through zero features, most of the light comes through for any seed."""
    for seed in range(20):
        sigma, _ = make(seed).density(torch.zeros(1, 8))
        assert 500 * sigma.item() * SHAPE.gsd_ref < 20.0
        assert sigma.item() * SHAPE.gsd_ref < 0.05


def test_the_seed_decides() -> None:
    a, b, c = (make(seed).to_arrays() for seed in (3, 3, 4))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


def test_arrays_round_trip(rng: np.random.Generator) -> None:
    one, other = make(1), make(2)
    arrays = one.to_arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    other.load_arrays(arrays)
    features = torch.from_numpy(rng.normal(size=(30, 8))).float()
    basis = torch.from_numpy(rng.normal(size=(30, DIRECTION_BASIS))).float()
    for a, b in zip(one(features, basis), other(features, basis), strict=True):
        assert torch.equal(a, b)
    # the decoder keeps its own copy
    arrays["colour_out.bias"][:] = 7.0
    assert not (other.colour_out.bias == 7.0).any()


@pytest.mark.parametrize("harm", ["missing", "shape"])
def test_wrong_arrays_are_named(harm: str) -> None:
    arrays = make().to_arrays()
    if harm == "missing":
        del arrays["colour_mid.weight"]
    else:
        arrays["colour_mid.weight"] = arrays["colour_mid.weight"][:, :-1]
    decoder = make(5)
    before = decoder.to_arrays()
    with pytest.raises(ValueError, match=r"colour_mid\.weight: expected shape \(64, 64\)"):
        decoder.load_arrays(arrays)
    assert all(np.array_equal(before[name], array) for name, array in decoder.to_arrays().items())


def test_basis_is_orthonormal_on_the_sphere() -> None:
    """By a quadrature that is exact for polynomials up to degree 7: products of band 3 have degree 6."""
    heights, height_weights = np.polynomial.legendre.leggauss(4)
    angles = np.arange(8) * (2 * np.pi / 8)
    z, phi = (a.ravel() for a in np.meshgrid(heights, angles, indexing="ij"))
    weights = np.repeat(height_weights, 8) * (2 * np.pi / 8)
    r = np.sqrt(1 - z * z)
    basis = direction_basis(torch.from_numpy(np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1)))
    assert basis.dtype == torch.float32
    gram = (basis.double() * torch.from_numpy(weights)[:, None]).T @ basis.double()
    torch.testing.assert_close(gram, torch.eye(DIRECTION_BASIS, dtype=torch.float64), atol=1e-5, rtol=0.0)


def test_bands_are_rotation_invariant_in_sum(rng: np.random.Generator) -> None:
    """Addition theorem: the squares of band l add up to (2 l + 1) / 4 pi in every direction."""
    directions = rng.normal(size=(100, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    squares = direction_basis(torch.from_numpy(directions)) ** 2
    for band in range(4):
        total = squares[:, band**2 : (band + 1) ** 2].sum(dim=1)
        torch.testing.assert_close(total, torch.full((100,), (2 * band + 1) / (4 * math.pi)), rtol=1e-5, atol=0.0)
