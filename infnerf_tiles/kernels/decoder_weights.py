"""The scene's decoder as plain arrays, for kernels that run all its layers at once."""

from dataclasses import dataclass

from torch import Tensor

DIRECTIONS = 16
"""Numbers of the direction basis."""


@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Layers F -> H -> 1 + G, then G + 16 -> H -> H -> 3, each [out, in] with a bias, rectified between.

    Density is exp(min(h_0 + gain f_0 - density_bias, max_exponent)) / gsd_ref, colour a sigmoid.
    """

    density_in: tuple[Tensor, Tensor]
    density_out: tuple[Tensor, Tensor]
    colour_in: tuple[Tensor, Tensor]
    colour_mid: tuple[Tensor, Tensor]
    colour_out: tuple[Tensor, Tensor]
    gain: float
    density_bias: float
    max_exponent: float
    gsd_ref: float

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of each layer in turn."""
        layers = (self.density_in, self.density_out, self.colour_in, self.colour_mid, self.colour_out)
        return [parameter.detach() for layer in layers for parameter in layer]

    @property
    def features(self) -> int:
        return int(self.density_in[0].shape[1])

    @property
    def hidden(self) -> int:
        return int(self.density_in[0].shape[0])

    @property
    def geometry(self) -> int:
        """G."""
        return int(self.density_out[0].shape[0]) - 1
