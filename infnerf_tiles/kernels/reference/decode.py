"""The scene's decoder without gradient, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional

from infnerf_tiles.kernels.decoder_weights import DecoderWeights


def prepare_weights(weights: DecoderWeights) -> DecoderWeights:
    """What `decode_into` can take instead of the weights, for a decoder that does not change between calls."""
    return weights


def decode_into(
    weights: DecoderWeights,
    features: Tensor,
    basis: Tensor,
    ray: Tensor,
    sigma_out: Tensor,
    colour_out: Tensor,
    *,
    count: Tensor | None = None,
) -> None:
    """Write density [M] (1 / world unit) and colour [M, 3] of samples; no gradient.

    Args:
        features: float [M, F]. basis: float32 [Q, 16], direction basis per ray. ray: int32 [M].
        count: int32 [1], rows in use of buffers of fixed capacity; the others are left as they are.
    """
    n = features.shape[0] if count is None else int(count)
    with torch.no_grad():
        x = features[:n].float()
        h = functional.linear(torch.relu(functional.linear(x, *weights.density_in)), *weights.density_out)
        exponent = h[:, 0] + weights.gain * x[:, 0] - weights.density_bias
        sigma_out[:n] = torch.exp(exponent.clamp(max=weights.max_exponent)) / weights.gsd_ref
        g = torch.cat([h[:, 1:], basis[ray[:n].long()]], dim=1)
        for layer in (weights.colour_in, weights.colour_mid):
            g = torch.relu(functional.linear(g, *layer))
        colour_out[:n] = torch.sigmoid(functional.linear(g, *weights.colour_out))
