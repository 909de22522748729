"""Density and colour of packed samples of resident nodes: the bridge from kernels to compositing."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, Samples
from infnerf_tiles.kernels.hand_over import hand_over

FieldFn = Callable[[Samples, Tensor], tuple[Tensor, Tensor]]
"""(samples, direction basis [Q, 16]) -> density [M], colour [M, 3]. Compositing takes any such function."""

EncodeInto = Callable[[Tensor, Tensor, Tensor, Arena, Tensor], None]
"""(position, slot, beta, arena, out): writes features as `encode_into` of the kernels does; takes their place."""

DECODER_BLOCK = 2048
"""Rows a decoder of another kind runs on at once. Fixed and padded: products change in the last bit with their size.
Small, so that what the layers hand on stays in the cache of a core; a GPU takes more at once."""
_GPU_BLOCK = 1 << 16


def evaluate_nodes(
    arena: Arena,
    decoder: Decoder,
    position: Tensor,
    slot: Tensor,
    beta: Tensor,
    basis: Tensor,
    encode_into: EncodeInto | None = None,
    *,
    ray: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Density [M] and colour [M, 3] of points in nodes, without gradient.

    Args as in `encode`; basis float32 [Q, 16] and ray int32 [M], its row for each point, by default row m for point m.
    The result of a sample does not depend on the others.
    """
    num = position.shape[0]
    device = position.device
    features = torch.empty((num, arena.features), device=device)
    (encode_into or for_device(arena.device).encode_into)(position, slot, beta, arena, features)
    sigma, colour = torch.empty(num, device=device), torch.empty((num, 3), device=device)
    kernels = for_device(device)
    if ray is None:
        ray = torch.arange(num, dtype=torch.int32, device=device)
    if decodes_alone(decoder, kernels):
        kernels.decode_into(decoder.weights(), features, basis, ray, sigma, colour)
    else:
        decode_padded(decoder, features, basis, ray, sigma, colour)
    return sigma, colour


def decodes_alone(decoder: Decoder, kernels: ModuleType) -> bool:
    """Whether `decode_into` of these kernels can take a decoder, and gives a row the same bits in any company."""
    if type(decoder) is not Decoder or not kernels.ROWS_ALONE:
        return False
    widest = max(decoder.shape.hidden, decoder.shape.geometry_features + 1)
    return kernels.WIDEST is None or widest <= kernels.WIDEST


def decode_padded(
    decoder: Decoder, features: Tensor, basis: Tensor, ray: Tensor, sigma_out: Tensor, colour_out: Tensor
) -> None:
    """Write density [M] and colour [M, 3] of samples in fixed-size padded blocks, for a decoder of any kind.

    Args:
        features: float32 [M, F]. basis: float32 [Q, 16], direction basis per ray. ray: int32 [M].
    """
    rows = DECODER_BLOCK if features.device.type == "cpu" else _GPU_BLOCK
    with torch.no_grad():
        for first in range(0, features.shape[0], rows):
            block, here = features[first : first + rows], ray[first : first + rows]
            num = block.shape[0]
            sigma, colour = decoder(_padded(block, rows), _padded(basis.index_select(0, here), rows))
            sigma_out[first : first + num] = sigma[:num]
            colour_out[first : first + num] = colour[:num]


def _padded(values: Tensor, rows: int) -> Tensor:
    full = values.new_zeros((rows, values.shape[1]))
    full[: values.shape[0]] = values
    return full


def shade(
    arena: Arena, decoder: Decoder, samples: Samples, basis: Tensor, encode_into: EncodeInto | None = None
) -> tuple[Tensor, Tensor]:
    """Density [M] and colour [M, 3] of samples, with the hand-over to the treelet above; no gradient.

    Args:
        basis: float32 [Q, 16], direction basis per ray.
        encode_into: another feature grid than the arena's.
    """
    sigma, colour = evaluate_nodes(
        arena, decoder, samples.position, samples.slot, samples.beta, basis, encode_into, ray=samples.ray
    )
    part = torch.nonzero(samples.blend < 1.0).squeeze(1)
    if part.numel():
        above = samples.slot_above[part]
        mixed = torch.nonzero(above >= 0).squeeze(1)
        sigma_above, colour_above = torch.zeros_like(sigma[part]), torch.zeros_like(colour[part])
        if mixed.numel():
            there = part[mixed]
            sigma_above[mixed], colour_above[mixed] = evaluate_nodes(
                arena, decoder, samples.position_above[there], above[mixed], torch.ones_like(samples.blend[there]),
                basis, encode_into, ray=samples.ray[there],
            )  # fmt: skip
        sigma[part], share = hand_over(sigma[part], sigma_above, samples.blend[part], samples.dt[part])
        share = share[:, None]
        colour[part] = torch.where(
            above[:, None] >= 0, share * colour[part] + (1.0 - share) * colour_above, colour[part]
        )
    return sigma, colour
