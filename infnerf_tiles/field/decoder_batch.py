"""The decoder on large batches: one number format throughout, rows padded to what matrix units like."""

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from infnerf_tiles.field.decoder import DENSITY_GAIN, Decoder
from infnerf_tiles.kernels import for_device

_ALIGN = 8
"""Columns of a matrix come in multiples of this."""


def decode_samples(
    decoder: Decoder,
    features: Tensor,
    ray: Tensor,
    basis: Tensor,
    count: Tensor,
    dtype: torch.dtype,
    *,
    fused: bool = True,
) -> tuple[Tensor, Tensor]:
    """Density float32 [M] and colour float32 [M, 3] of samples in buffers of fixed size; products in `dtype`.

    Args:
        features: float32 [M, F]. ray: int32 [M]. basis: float32 [Q, 16], direction basis of each ray.
        count: int32 [1], rows in use; the others may come out as anything finite.
        fused: whether one kernel does all layers, where there is one that can.
    """
    kernels = for_device(features.device)
    parameters = _parameters(decoder, kernels) if fused else None
    if parameters is not None:
        result: tuple[Tensor, Tensor] = kernels.decode(
            features, ray, basis, parameters, count=count, **constants_of(decoder), dtype=dtype
        )
        return result
    return decode_batch(decoder, features, basis.to(dtype).index_select(0, ray), dtype)


def density_of(decoder: Decoder, features: Tensor, dtype: torch.dtype) -> Tensor:
    """Density float32 [M] alone, no gradient, of samples on the processor; products in `dtype`."""
    kernels = for_device(features.device)
    parameters = _parameters(decoder, kernels)
    if parameters is not None:
        result: Tensor = kernels.decode_density(features, parameters, **constants_of(decoder), dtype=dtype)
        return result
    with torch.no_grad(), torch.autocast(features.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return decoder.density(features)[0]


def _parameters(decoder: Decoder, kernels: ModuleType) -> list[Tensor] | None:
    """Parameters of all layers, if one kernel can do them all."""
    if type(decoder) is not Decoder or not hasattr(kernels, "decode"):
        return None
    layers = (decoder.density_in, decoder.density_out, decoder.colour_in, decoder.colour_mid, decoder.colour_out)
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return parameters if kernels.decodes(parameters) else None


def constants_of(decoder: Decoder) -> dict[str, float]:
    """What kernels need to know of a decoder's density besides its parameters, as they name it."""
    shape = decoder.shape
    return {
        "gain": DENSITY_GAIN,
        "bias": shape.density_bias,
        "max_exponent": shape.max_exponent,
        "gsd_ref": shape.gsd_ref,
    }


def decode_batch(decoder: Decoder, features: Tensor, basis: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Density float32 [M] and colour float32 [M, 3] as `decoder(features, basis)`, with products in `dtype`.

    Args:
        features: float [M, F]. basis: [M, 16] in `dtype`.

    A decoder of another class is called under autocast.
    """
    if type(decoder) is not Decoder:
        with torch.autocast(features.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return decoder(features, basis)  # type: ignore[no-any-return]
    d = decoder
    h = torch.relu(_linear(d.density_in, features.to(dtype)))
    # the density goes into the colour half too, with a weight of zero: taking it off would cost a copy of all rows
    h = _linear(d.density_out, h)
    exponent = h[:, 0].float() + DENSITY_GAIN * features[:, 0].float() - d.shape.density_bias
    sigma = torch.exp(exponent.clamp(max=d.shape.max_exponent)) / d.shape.gsd_ref
    seen = torch.cat([h, basis], dim=1)
    weight = functional.pad(d.colour_in.weight, (1, 0))
    g = torch.relu(functional.linear(seen, weight.to(dtype), d.colour_in.bias.to(dtype)))
    g = torch.relu(_linear(d.colour_mid, g))
    more = -d.colour_out.out_features % _ALIGN
    weight, bias = functional.pad(d.colour_out.weight, (0, 0, 0, more)), functional.pad(d.colour_out.bias, (0, more))
    rgb = functional.linear(g, weight.to(dtype), bias.to(dtype))
    return sigma, torch.sigmoid(rgb[:, : d.colour_out.out_features].float())


def _linear(layer: torch.nn.Linear, values: Tensor) -> Tensor:
    return functional.linear(values, layer.weight.to(values.dtype), layer.bias.to(values.dtype))
