"""The scene's decoder without gradient, in Triton: all layers of a block of samples without leaving the chip.

Products are float16 with float32 sums. A sample's result does not depend on the others in its block.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from infnerf_tiles.kernels.cuda.launch import launch, programs_for
from infnerf_tiles.kernels.decoder_weights import DIRECTIONS, DecoderWeights

_BLOCK = 128
_TILES = 8
"""Blocks that a program takes one after another, for once loaded weights."""
_LEAST = 16
"""Rows and columns that a matrix unit takes at least."""


@triton.jit
def _matrix(start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.load(start + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit(do_not_specialize=["num"])
def _decode_kernel(
    features, basis, ray, count, sigma_out, colour_out,
    w_density_in, w_density_out, w_geometry, w_direction, w_colour_mid, w_colour_out,
    b_density_in, b_density_out, b_colour_in, b_colour_mid, b_colour_out,
    gain, density_bias, max_exponent, scale, num,
    F: tl.constexpr, F_PAD: tl.constexpr, H: tl.constexpr, G: tl.constexpr, COUNTED: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    used = num
    if COUNTED:
        used = tl.minimum(tl.load(count), num)
    if tl.program_id(0) * (TILES * BLOCK) < used:
        density_in = _matrix(w_density_in, F_PAD, H)
        density_out = _matrix(w_density_out, H, G)
        geometry = _matrix(w_geometry, G, H)
        direction = _matrix(w_direction, 16, H)
        colour_mid = _matrix(w_colour_mid, H, H)
        colour_out_matrix = _matrix(w_colour_out, H, 16)
        h = tl.arange(0, H)
        bias_in = tl.load(b_density_in + h)
        bias_colour = tl.load(b_colour_in + h)
        bias_mid = tl.load(b_colour_mid + h)
        bias_density = tl.load(b_density_out + tl.arange(0, G))
        bias_out = tl.load(b_colour_out + tl.arange(0, 16))
        f = tl.arange(0, F_PAD)
        k = tl.arange(0, 16)
        g = tl.arange(0, G)
        for tile in range(TILES):
            m = (tl.program_id(0) * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
            live = m < used
            row = m.to(tl.int64)
            x = tl.load(features + row[:, None] * F + f[None, :], mask=live[:, None] & (f < F)[None, :], other=0.0)
            a = tl.maximum(tl.dot(x.to(tl.float16), density_in) + bias_in[None, :], 0.0).to(tl.float16)
            a = tl.dot(a, density_out) + bias_density[None, :]
            first = tl.sum(tl.where((g == 0)[None, :], a, 0.0), 1)
            own = tl.load(features + row * F, mask=live, other=0.0).to(tl.float32)
            exponent = tl.minimum(first + gain * own - density_bias, max_exponent)
            tl.store(sigma_out + m, tl.exp(exponent) * scale, mask=live)
            q = tl.load(ray + m, mask=live, other=0)
            d = tl.load(basis + (q * 16)[:, None] + k[None, :], mask=live[:, None], other=0.0).to(tl.float16)
            c = tl.dot(d, direction)
            c = tl.dot(a.to(tl.float16), geometry, c)
            c = tl.maximum(c + bias_colour[None, :], 0.0).to(tl.float16)
            c = tl.maximum(tl.dot(c, colour_mid) + bias_mid[None, :], 0.0).to(tl.float16)
            c = tl.dot(c, colour_out_matrix) + bias_out[None, :]
            c = 1.0 / (1.0 + tl.exp(-c))
            tl.store(colour_out + (row * 3)[:, None] + k[None, :], c, mask=live[:, None] & (k < 3)[None, :])


def _padded(weight: Tensor, rows: int, columns: int, *, skip: int = 0) -> Tensor:
    """float16 [rows, columns] with the transpose of a layer's weight behind `skip` rows of zeros."""
    out = torch.zeros((rows, columns), dtype=torch.float16, device=weight.device)
    out[skip : skip + weight.shape[1], : weight.shape[0]] = weight.detach().T
    return out


def _bias(bias: Tensor, columns: int) -> Tensor:
    out = torch.zeros(columns, device=bias.device)
    out[: bias.shape[0]] = bias.detach()
    return out


@dataclass(frozen=True, kw_only=True)
class PreparedWeights:
    """A decoder's layers as the kernel reads them: transposed, padded with zeros, float16 with float32 biases."""

    arrays: tuple[Tensor, ...]
    """Six matrices, then five biases, in the kernel's order."""
    constants: tuple[float, float, float, float]
    features: int
    width: int
    """Features, padded."""
    hidden: int
    inner: int


def prepare_weights(weights: DecoderWeights) -> PreparedWeights:
    """What `decode_into` can take instead of the weights, for a decoder that does not change between calls."""
    geometry = weights.geometry
    width = max(_LEAST, triton.next_power_of_2(weights.features))
    hidden = max(_LEAST, triton.next_power_of_2(weights.hidden))
    inner = max(_LEAST, triton.next_power_of_2(geometry + 1))
    colour_in = weights.colour_in[0]
    return PreparedWeights(
        arrays=(
            _padded(weights.density_in[0], width, hidden),
            _padded(weights.density_out[0], hidden, inner),
            # the density itself is no input of the colour half
            _padded(colour_in[:, :geometry], inner, hidden, skip=1),
            _padded(colour_in[:, geometry:], DIRECTIONS, hidden),
            _padded(weights.colour_mid[0], hidden, hidden),
            _padded(weights.colour_out[0], hidden, _LEAST),
            _bias(weights.density_in[1], hidden),
            _bias(weights.density_out[1], inner),
            _bias(weights.colour_in[1], hidden),
            _bias(weights.colour_mid[1], hidden),
            _bias(weights.colour_out[1], _LEAST),
        ),
        constants=(weights.gain, weights.density_bias, weights.max_exponent, 1.0 / weights.gsd_ref),
        features=weights.features,
        width=width,
        hidden=hidden,
        inner=inner,
    )


def decode_into(
    weights: DecoderWeights | PreparedWeights,
    features: Tensor,
    basis: Tensor,
    ray: Tensor,
    sigma_out: Tensor,
    colour_out: Tensor,
    *,
    count: Tensor | None = None,
) -> None:
    """Write density and colour of samples; arguments as in the reference twin, or prepared weights."""
    num = features.shape[0]
    w = weights if isinstance(weights, PreparedWeights) else prepare_weights(weights)
    launch(
        _decode_kernel, programs_for(num, _BLOCK * _TILES),
        features.contiguous(), basis.contiguous(), ray.contiguous(), ray if count is None else count,
        sigma_out, colour_out, *w.arrays, *w.constants, num,
        F=w.features, F_PAD=w.width, H=w.hidden, G=w.inner, COUNTED=count is not None, TILES=_TILES, BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
