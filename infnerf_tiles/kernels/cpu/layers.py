"""All layers of the decoder and their gradients in one pass over the samples, some of them at a time.

Products keep channels in vectors and samples below one another, so that features, directions and weights are taken as
they lie. What the layers hand on stays in the cache; only what the gradient needs is kept.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit, prange

from infnerf_tiles.kernels.cpu.products import BIAS, MASK, PLAIN, RELU, convert, outer_sum, product

BASIS = 16
ROWS = 96
"""Samples that pass through all layers together; a multiple of the rows that products compute side by side."""
BLOCK = 42 * ROWS
"""Samples of a task, whose gradients of the parameters are summed up before they meet those of others."""
COLOURS = 4
"""Channels of a colour and a spare one."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Channels of the layers, filled up to what vectors take."""

    features: int
    hidden: int
    geometry: int
    """With h_0."""
    pairs: bool
    """Whether the products' factors are pairs of bfloat16; otherwise float32."""

    @classmethod
    def of(cls, *, features: int, hidden: int, geometry: int, pairs: bool) -> Self:
        few = next((k for k in (4, 8) if k >= features), -(-features // 16) * 16)
        return cls(features=few, hidden=-(-hidden // 16) * 16, geometry=-(-geometry // 16) * 16, pairs=pairs)

    @property
    def seen(self) -> int:
        """Channels that the colour half starts from."""
        return self.geometry + BASIS

    @property
    def kept(self) -> int:
        """Elements that the gradient needs of the samples that pass together."""
        return ROWS * (3 * self.hidden + self.seen) // (1 + self.pairs)

    @property
    def learned(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of weights [out, in] and biases."""
        f, h, g, s = self.features, self.hidden, self.geometry, self.seen
        return (h, f), (h,), (g, h), (g,), (h, s), (h,), (h, h), (h,), (COLOURS, h), (COLOURS,)


@functools.cache
def forward_kernel(widths: Widths) -> Callable[..., None]:
    """(features [M, F], ray [M], basis [Q, 16], weights [in, out] and biases, keep, kept, exponent [M], colour [M, 3]).

    Weights and basis are factors; `kept` is [groups of ROWS samples, elements], or [blocks, elements] unless `keep`.
    The exponent is h_0, the colour what the sigmoid takes.
    """
    few, hidden, geometry, seen = widths.features, widths.hidden, widths.geometry, widths.seen
    part = 1 + widths.pairs
    kind = np.int32 if widths.pairs else np.float32
    x_row, row, seen_row, basis_row = few // part, hidden // part, seen // part, BASIS // part
    at_basis = geometry // part
    at_seen, at_z1, at_z2 = ROWS * row, ROWS * (row + seen_row), ROWS * (2 * row + seen_row)

    @njit(cache=True, parallel=True)
    def forward(features, ray, basis, w1, b1, w2, b2, w3, b3, w4, b4, w5, b5, keep, kept, exponent, colour):  # type: ignore[no-untyped-def]
        num, channels, size = features.shape[0], features.shape[1], kept.shape[1]
        for task in prange((num + BLOCK - 1) // BLOCK):
            block = np.int64(task)
            wide, x = np.zeros((ROWS, few), np.float32), np.empty((ROWS, x_row), kind)
            h, rgb = np.empty((ROWS, geometry), np.float32), np.empty((ROWS, COLOURS), np.float32)
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                group = first // ROWS if keep else block
                h1, h2, z1, z2 = group * size, group * size + at_seen, group * size + at_z1, group * size + at_z2
                directions = kept[group, at_seen:]
                for i in range(ROWS):
                    own = first + min(i, here - 1)
                    for k in range(channels):
                        wide[i, k] = features[own, k]
                    towards = ray[own]
                    for k in range(basis_row):
                        directions[i * seen_row + at_basis + k] = basis[towards, k]
                convert(wide, 0, x, 0, ROWS, few, x_row)
                product(x, 0, w1, 0, kept, h1, b1, 0, ROWS, hidden, x_row, x_row, hidden, row, RELU)
                product(kept, h1, w2, 0, h, 0, b2, 0, ROWS, geometry, row, row, geometry, geometry, BIAS)
                convert(h, 0, kept, h2, ROWS, geometry, seen_row)
                product(kept, h2, w3, 0, kept, z1, b3, 0, ROWS, hidden, seen_row, seen_row, hidden, row, RELU)
                product(kept, z1, w4, 0, kept, z2, b4, 0, ROWS, hidden, row, row, hidden, row, RELU)
                product(kept, z2, w5, 0, rgb, 0, b5, 0, ROWS, COLOURS, row, row, COLOURS, COLOURS, BIAS)
                for i in range(here):
                    exponent[first + i] = h[i, 0]
                    for k in range(3):
                        colour[first + i, k] = rgb[i, k]

    return forward


@functools.cache
def backward_kernel(widths: Widths) -> Callable[..., None]:
    """(features [M, F], kept, weights [out, in], slopes of h_0 [M] and of what the sigmoid takes [M, 3], ...).

    Further: slopes of the features [M, F]; whether the parameters learn; if so theirs, float32 [blocks, shape], which
    are added to. Weights are factors.
    """
    few, hidden, geometry, seen = widths.features, widths.hidden, widths.geometry, widths.seen
    part = 1 + widths.pairs
    kind = np.int32 if widths.pairs else np.float32
    x_row, row, seen_row, h_row, colour_row = few // part, hidden // part, seen // part, geometry // part, COLOURS // part
    at_seen, at_z1, at_z2 = ROWS * row, ROWS * (row + seen_row), ROWS * (2 * row + seen_row)
    spare_size = 1 + ROWS * (hidden + max(hidden, seen)) // 2

    @njit(cache=True, parallel=True)
    def backward(  # type: ignore[no-untyped-def]
        features, kept, w1, w2, w3, w4, w5, steep, outer, grad, learn, g1, c1, g2, c2, g3, c3, g4, c4, g5, c5
    ):
        num, channels, size = features.shape[0], features.shape[1], kept.shape[1]
        for task in prange((num + BLOCK - 1) // BLOCK):
            block = np.int64(task)
            wide, x, dx = np.zeros((ROWS, few), np.float32), np.empty((ROWS, x_row), kind), np.empty((ROWS, few), np.float32)
            rgb, h = np.zeros((ROWS, COLOURS), np.float32), np.empty((ROWS, geometry), np.float32)
            d1, d2, d3 = np.empty((ROWS, row), kind), np.empty((ROWS, h_row), kind), np.empty((ROWS, row), kind)
            d4, d5, spare = np.empty((ROWS, row), kind), np.empty((ROWS, colour_row), kind), np.empty(spare_size, kind)
            hh, hf, gh, hs, cc = hidden * hidden, hidden * few, geometry * hidden, hidden * seen, COLOURS * hidden
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                h1 = first // ROWS * size
                h2, z1, z2 = h1 + at_seen, h1 + at_z1, h1 + at_z2
                for i in range(ROWS):
                    own = first + min(i, here - 1)
                    for k in range(3):
                        rgb[i, k] = outer[own, k] if i < here else np.float32(0.0)
                convert(rgb, 0, d5, 0, ROWS, COLOURS, colour_row)
                product(d5, 0, w5, 0, d4, 0, kept, z2, ROWS, hidden, colour_row, colour_row, hidden, row, MASK)
                product(d4, 0, w4, 0, d3, 0, kept, z1, ROWS, hidden, row, row, hidden, row, MASK)
                product(d3, 0, w3, 0, h, 0, h, 0, ROWS, geometry, row, row, seen, geometry, PLAIN)
                for i in range(ROWS):
                    h[i, 0] = steep[first + i] if i < here else np.float32(0.0)
                convert(h, 0, d2, 0, ROWS, geometry, h_row)
                product(d2, 0, w2, 0, d1, 0, kept, h1, ROWS, hidden, h_row, h_row, hidden, row, MASK)
                product(d1, 0, w1, 0, dx, 0, dx, 0, ROWS, few, row, row, few, few, PLAIN)
                for i in range(here):
                    for k in range(channels):
                        grad[first + i, k] = dx[i, k]
                if learn:
                    for i in range(ROWS):
                        own = first + min(i, here - 1)
                        for k in range(channels):
                            wide[i, k] = features[own, k]
                    convert(wide, 0, x, 0, ROWS, few, x_row)
                    b = block * hidden
                    outer_sum(d1, 0, x, 0, g1, block * hf, c1, b, spare, 0, ROWS, hidden, few, x_row)
                    outer_sum(d2, 0, kept, h1, g2, block * gh, c2, block * geometry, spare, 0, ROWS, geometry, hidden, row)
                    outer_sum(d3, 0, kept, h2, g3, block * hs, c3, b, spare, 0, ROWS, hidden, seen, seen_row)
                    outer_sum(d4, 0, kept, z1, g4, block * hh, c4, b, spare, 0, ROWS, hidden, hidden, row)
                    outer_sum(d5, 0, kept, z2, g5, block * cc, c5, block * COLOURS, spare, 0, ROWS, COLOURS, hidden, row)

    return backward


@functools.cache
def density_kernel(widths: Widths) -> Callable[..., None]:
    """(features [M, F], weight [in, out] and bias of the first layer, weight of h_0 [in, 4], its bias [4], h_0 [M])."""
    few, hidden = widths.features, widths.hidden
    part = 1 + widths.pairs
    kind = np.int32 if widths.pairs else np.float32
    x_row, row = few // part, hidden // part

    @njit(cache=True, parallel=True)
    def density(features, w1, b1, w2, b2, exponent):  # type: ignore[no-untyped-def]
        num, channels = features.shape
        for task in prange((num + BLOCK - 1) // BLOCK):
            block = np.int64(task)
            wide, x = np.zeros((ROWS, few), np.float32), np.empty((ROWS, x_row), kind)
            h1, h2 = np.empty((ROWS, row), kind), np.empty((ROWS, 4), np.float32)
            for first in range(block * BLOCK, min((block + 1) * BLOCK, num), ROWS):
                here = min(ROWS, num - first)
                for i in range(ROWS):
                    own = first + min(i, here - 1)
                    for k in range(channels):
                        wide[i, k] = features[own, k]
                convert(wide, 0, x, 0, ROWS, few, x_row)
                product(x, 0, w1, 0, h1, 0, b1, 0, ROWS, hidden, x_row, x_row, hidden, row, RELU)
                product(h1, 0, w2, 0, h2, 0, b2, 0, ROWS, 4, row, row, 4, 4, BIAS)
                for i in range(here):
                    exponent[first + i] = h2[i, 0]

    return density
