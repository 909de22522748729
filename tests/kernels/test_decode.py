"""The decoder's kernels for the processor against the decoder itself in float64."""

import copy
import sys
import threading

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from infnerf_tiles.field.decoder import DENSITY_GAIN, Decoder, decoder_shape
from infnerf_tiles.kernels.cpu import decode as public
from infnerf_tiles.kernels.cpu import decode_density, decodes
from infnerf_tiles.kernels.cpu.layers import BLOCK, ROWS
from infnerf_tiles.kernels.cpu.products import has_pairs

RAYS = 20
FORMATS = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not has_pairs(), reason="needs products of bfloat16 pairs")),
]


def new(features: int = 8, hidden: int = 32, geometry: int = 15) -> Decoder:
    shape = decoder_shape(
        features=features, hidden=hidden, geometry_features=geometry, density_bias=3.0, gsd_ref=2.0, gsd_finest=0.1
    )
    return Decoder(shape, torch.Generator().manual_seed(0))


def parameters(decoder: Decoder) -> list[Tensor]:
    layers = (decoder.density_in, decoder.density_out, decoder.colour_in, decoder.colour_mid, decoder.colour_out)
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def constants(decoder: Decoder) -> dict[str, float]:
    shape = decoder.shape
    return {
        "gain": DENSITY_GAIN, "bias": shape.density_bias, "max_exponent": shape.max_exponent, "gsd_ref": shape.gsd_ref
    }  # fmt: skip


def decode(decoder: Decoder, samples: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    features, ray, basis = samples[:3]
    count = torch.tensor([len(features)], dtype=torch.int32)
    return public(features, ray, basis, parameters(decoder), count=count, **constants(decoder), dtype=dtype)


def draw(decoder: Decoder, num: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, rays, basis and gradients [M, 4], of samples at which no rectifier is on its kink.

    Densities span many powers of ten. Their gradients make up for it: else one sample's rounding would be as large as
    the sum of all others.
    """
    exact = copy.deepcopy(decoder).double()
    many = 4 * num + 50
    features = torch.from_numpy(rng.normal(size=(many, decoder.shape.features))).float()
    basis = torch.from_numpy(rng.normal(size=(RAYS, 16))).float()
    ray = torch.from_numpy(rng.integers(0, RAYS, many)).int()
    with torch.no_grad():
        z = exact.density_in(features.double())
        seen = torch.cat([exact.density_out(z.relu())[:, 1:], basis.double()[ray.long()]], dim=1)
        y = exact.colour_in(seen)
        nearest = torch.cat([z, y, exact.colour_mid(y.relu())], dim=1).abs().amin(dim=1)
    good = torch.nonzero(nearest > 2e-5).squeeze(1)[:num]
    assert len(good) == num
    towards = torch.from_numpy(rng.normal(size=(num, 4))).float()
    with torch.no_grad():
        towards[:, 0] /= 1.0 + exact.density(features[good].double())[0].float()
    return features[good], ray[good], basis, towards


def results(decoder: Decoder, samples: tuple[Tensor, ...], dtype: torch.dtype | None) -> list[Tensor]:
    """Values, then gradients of features and parameters; of the decoder itself if there is no format."""
    features, ray, basis, towards = samples
    if dtype is None:
        decoder = copy.deepcopy(decoder).double()
        x = features.double().requires_grad_()
        found = decoder(x, basis.double()[ray.long()])
    else:
        x = features.clone().requires_grad_()
        found = decode(decoder, (x, ray, basis), dtype)
    slopes = torch.autograd.grad((found[0] @ towards[:, 0].to(found[0])) + (found[1] * towards[:, 1:]).sum(), [
        x, *parameters(decoder)
    ])  # fmt: skip
    return [value.detach() for value in (*found, *slopes)]


@pytest.mark.parametrize("num", [0, 1, ROWS - 1, ROWS, ROWS + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_values_and_gradients_are_the_decoders(num: int, rng: np.random.Generator) -> None:
    decoder = new()
    samples = draw(decoder, num, rng)
    for found, exact in zip(results(decoder, samples, torch.float32), results(decoder, samples, None), strict=True):
        assert found.shape == exact.shape
        assert torch.allclose(found.double(), exact, rtol=2e-5, atol=2e-5 * float(exact.abs().max()) if num else 0.0)


@pytest.mark.parametrize(
    ("features", "hidden", "geometry"), [(2, 32, 15), (16, 128, 15), (5, 24, 20), (20, 64, 3)]
)  # fmt: skip
def test_shapes_of_any_size(features: int, hidden: int, geometry: int, rng: np.random.Generator) -> None:
    decoder = new(features, hidden, geometry)
    assert decodes(parameters(decoder))
    samples = draw(decoder, 150, rng)
    for found, exact in zip(results(decoder, samples, torch.float32), results(decoder, samples, None), strict=True):
        assert found.shape == exact.shape
        assert torch.allclose(found.double(), exact, rtol=2e-5, atol=2e-5 * float(exact.abs().max()))


def test_pairs_of_bfloat16_are_as_near_as_autocast_is(rng: np.random.Generator) -> None:
    """Both round factors and nothing else, in sums of different order."""
    if not has_pairs():
        pytest.skip("needs products of bfloat16 pairs")
    decoder = new()
    samples = draw(decoder, 2000, rng)
    features, ray, basis, towards = samples
    exact, found = results(decoder, samples, None), results(decoder, samples, torch.bfloat16)
    x = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sigma, colour = decoder(x, basis[ray.long()])
    slopes = torch.autograd.grad((sigma @ towards[:, 0]) + (colour * towards[:, 1:]).sum(), [x, *parameters(decoder)])
    autocast = [value.detach() for value in (sigma, colour, *slopes)]
    errors = torch.tensor([
        [float((value - right).norm() / right.norm()) for value, right in zip(values, exact, strict=True)]
        for values in (found, autocast)
    ])  # fmt: skip
    assert errors.max() < 0.25
    assert errors[0].sum() < 1.5 * errors[1].sum()


@pytest.mark.parametrize("dtype", FORMATS)
def test_threads_do_not_show(dtype: torch.dtype, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new()
    samples = draw(decoder, 5 * BLOCK + 11, rng)
    found = []
    for threads in (1, 2, 3, 3, 3):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        density = decode_density(samples[0], parameters(decoder), **constants(decoder), dtype=dtype)
        found.append([*results(decoder, samples, dtype), density])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_two_callers_do_not_meet(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new()
    samples = [draw(decoder, 3 * BLOCK + k, rng) for k in range(4)]
    expected = [results(decoder, here, torch.float32) for here in samples]
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    found: dict[int, list[Tensor]] = {}

    def call(k: int) -> None:
        found[k] = results(decoder, samples[k], torch.float32)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, values in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(values, found[k], strict=True))


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_sample_does_not_see_the_others(dtype: torch.dtype, rng: np.random.Generator) -> None:
    decoder = new()
    features, ray, basis, _ = draw(decoder, BLOCK + 100, rng)
    with torch.no_grad():
        sigma, colour = decode(decoder, (features, ray, basis), dtype)
        order = torch.from_numpy(rng.permutation(len(features))[:777])
        alone = decode(decoder, (features[order], ray[order], basis), dtype)
    # the exponential of another place in a tensor may differ in its last bit
    assert torch.allclose(alone[0], sigma[order], rtol=1e-6)
    assert torch.allclose(alone[1], colour[order], rtol=1e-6)


@pytest.mark.parametrize("dtype", FORMATS)
def test_density_alone_is_the_same(dtype: torch.dtype, rng: np.random.Generator) -> None:
    """What is dropped for its density is what the step then sees."""
    decoder = new()
    samples = draw(decoder, BLOCK + 100, rng)
    alone = decode_density(samples[0], parameters(decoder), **constants(decoder), dtype=dtype)
    assert torch.allclose(alone, decode(decoder, samples, dtype)[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", FORMATS)
def test_nan_comes_out_where_it_went_in(dtype: torch.dtype, rng: np.random.Generator) -> None:
    """A step looks at its loss alone, so that no rectifier may hide NaN of a feature or a direction."""
    decoder = new()
    features, ray, basis, _ = draw(decoder, 2 * ROWS, rng)
    basis = torch.cat([basis, torch.full((1, 16), torch.nan)])
    features[5, 3], features[ROWS + 7, 0], ray[50] = torch.nan, torch.nan, RAYS
    for learns in (True, False):
        with torch.set_grad_enabled(learns):
            sigma, colour = decode(decoder, (features, ray, basis), dtype)
        assert torch.nonzero(sigma.isnan()).flatten().tolist() == [5, ROWS + 7]
        assert torch.nonzero(colour.isnan().all(dim=1)).flatten().tolist() == [5, 50, ROWS + 7]
        assert torch.nonzero(colour.isnan().any(dim=1)).flatten().tolist() == [5, 50, ROWS + 7]
    with torch.no_grad():
        decoder.density_in.weight[4, 2] = torch.nan
        density = decode_density(features, parameters(decoder), **constants(decoder), dtype=dtype)
        sigma, colour = decode(decoder, (features, ray, basis), dtype)
    assert density.isnan().all()
    assert sigma.isnan().all()
    assert colour.isnan().all()


def test_a_clamped_exponent_has_no_gradient(rng: np.random.Generator) -> None:
    decoder = new()
    samples = draw(decoder, 300, rng)
    samples[0][::2, 0], samples[0][1::2, 0] = 30.0, 0.0
    x = samples[0].clone().requires_grad_()
    sigma, _ = decode(decoder, (x, *samples[1:]))
    shape = decoder.shape
    assert torch.allclose(sigma[::2], torch.tensor(shape.max_exponent).exp() / shape.gsd_ref)
    (slopes,) = torch.autograd.grad(sigma.sum(), [x])
    assert not slopes[::2].any()
    assert slopes[1::2].any(dim=1).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_frozen_decoder_gives_the_same_gradient(dtype: torch.dtype, rng: np.random.Generator) -> None:
    decoder = new()
    samples = draw(decoder, 300, rng)
    slopes = results(decoder, samples, dtype)[2]
    x = samples[0].clone().requires_grad_()
    for p in decoder.parameters():
        p.requires_grad_(False)
    sigma, colour = decode(decoder, (x, *samples[1:]), dtype)
    towards = samples[3]
    (alone,) = torch.autograd.grad((sigma @ towards[:, 0]) + (colour * towards[:, 1:]).sum(), [x])
    assert torch.equal(alone, slopes)


def test_parts_of_memory_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new()
    samples = draw(decoder, 3 * BLOCK + 50, rng)
    whole = results(decoder, samples, torch.float32)
    monkeypatch.setattr(sys.modules["infnerf_tiles.kernels.cpu.decode"], "_ALLOCATION", 1)
    for a, b in zip(whole, results(decoder, samples, torch.float32), strict=True):
        assert torch.equal(a, b)
