"""The small MLP shared by the whole scene: features and direction to density and colour."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from infnerf_tiles.arrays import Float32
from infnerf_tiles.kernels.decoder_weights import DecoderWeights

DENSITY_GAIN = 4.0
"""How much the linear channel f_0 counts in the exponent. Density spans many powers of e between air and walls; with a
gain of one, features that move by the learning rate a step need hundreds of steps to get from one to the other."""
DIRECTION_BASIS = 16
"""Spherical harmonics of 4 bands."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Widths and constants of a decoder."""

    features: int
    hidden: int
    geometry_features: int
    gsd_ref: float
    """Length that makes density dimensionless, world units; one constant for the whole scene."""
    density_bias: float
    """b in sigma = exp(h_0 + f_0 - b) / gsd_ref."""
    max_exponent: float
    """The exponent is clamped here; above what the deepest level needs to be opaque in one step."""


def decoder_shape(
    *, features: int, hidden: int, geometry_features: int, density_bias: float, gsd_ref: float, gsd_finest: float
) -> DecoderShape:
    """The shape for a scene: the exponent may reach what makes half a step at the finest GSD fully opaque."""
    return DecoderShape(
        features=features,
        hidden=hidden,
        geometry_features=geometry_features,
        gsd_ref=float(gsd_ref),
        density_bias=float(density_bias),
        max_exponent=math.log(gsd_ref / gsd_finest) + 4.0,
    )


class Decoder(nn.Module):
    """F -> hidden -> 1 + G, then G + SH(4 bands) -> hidden -> hidden -> 3 (sigmoid).

    Density is exp(h_0 + f_0 - b) / gsd_ref: the linear channel f_0 lets nodes many levels down become opaque while the
    decoder is frozen. A replacement needs the same `density` and `colour` calls.
    """

    def __init__(self, shape: DecoderShape, generator: torch.Generator | None = None):
        super().__init__()
        self.shape = shape
        self.density_in = nn.Linear(shape.features, shape.hidden)
        self.density_out = nn.Linear(shape.hidden, 1 + shape.geometry_features)
        self.colour_in = nn.Linear(shape.geometry_features + DIRECTION_BASIS, shape.hidden)
        self.colour_mid = nn.Linear(shape.hidden, shape.hidden)
        self.colour_out = nn.Linear(shape.hidden, 3)
        if generator is not None:
            with torch.no_grad():
                for layer in (self.density_in, self.density_out, self.colour_in, self.colour_mid, self.colour_out):
                    bound = math.sqrt(6.0 / layer.in_features)
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.zero_()
                # a fresh field has zero features, so only biases speak: without them every rectifier sits on its kink
                self.density_in.bias.uniform_(-0.5, 0.5, generator=generator)
                self.density_out.weight[0].mul_(0.1)

    def density(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Density float32 [M] (1 / world unit) and geometry features [M, G] of features float32 [M, F]."""
        h = self.density_out(torch.relu(self.density_in(features)))
        exponent = _wide(h[:, 0]) + DENSITY_GAIN * _wide(features[:, 0]) - self.shape.density_bias
        sigma = torch.exp(exponent.clamp(max=self.shape.max_exponent)) / self.shape.gsd_ref
        return sigma, h[:, 1:]

    def colour(self, geometry: Tensor, basis: Tensor) -> Tensor:
        """Colour float32 [M, 3] in (0, 1) of geometry features [M, G] and direction basis [M, 16]."""
        h = torch.cat([geometry, basis.to(geometry.dtype)], dim=1)
        h = torch.relu(self.colour_mid(torch.relu(self.colour_in(h))))
        return torch.sigmoid(_wide(self.colour_out(h)))

    def forward(self, features: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Density [M] and colour [M, 3]."""
        sigma, geometry = self.density(features)
        return sigma, self.colour(geometry, basis)

    def weights(self) -> DecoderWeights:
        """All layers as kernels take them; the tensors are the decoder's own."""

        def of(layer: nn.Linear) -> tuple[Tensor, Tensor]:
            return layer.weight.detach(), layer.bias.detach()

        return DecoderWeights(
            density_in=of(self.density_in),
            density_out=of(self.density_out),
            colour_in=of(self.colour_in),
            colour_mid=of(self.colour_mid),
            colour_out=of(self.colour_out),
            gain=DENSITY_GAIN,
            density_bias=self.shape.density_bias,
            max_exponent=self.shape.max_exponent,
            gsd_ref=self.shape.gsd_ref,
        )

    def to_arrays(self) -> dict[str, Float32]:
        """Parameters as float32 arrays by name."""
        return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in self.state_dict().items()}

    def load_arrays(self, arrays: dict[str, Float32]) -> None:
        """Take parameters from `to_arrays` output; a missing name or another shape raises ValueError."""
        own = self.state_dict()
        for name, value in own.items():
            if name not in arrays or tuple(arrays[name].shape) != tuple(value.shape):
                got = tuple(arrays[name].shape) if name in arrays else "nothing"
                raise ValueError(f"decoder {name}: expected shape {tuple(value.shape)}, got {got}")
        self.load_state_dict({name: torch.from_numpy(np.array(arrays[name], np.float32)) for name in own})


def _wide(values: Tensor) -> Tensor:
    """At least float32: sums and exponentials of half-precision products are not taken in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def faded_basis(basis: Tensor, share: float | Tensor) -> Tensor:
    """Direction basis [Q, 16] with all but its constant multiplied by `share`, a number or a tensor [1].

    The very basis if the number is 1; a tensor's value is not asked for, which would wait for its device.
    """
    if not isinstance(share, Tensor) and share == 1.0:
        return basis
    return torch.cat([basis[:, :1], basis[:, 1:] * share], dim=1)


def direction_basis(directions: Tensor) -> Tensor:
    """Real spherical harmonics up to band 3 of unit directions float [Q, 3]: float32 [Q, 16] (Sloan 2008)."""
    x, y, z = directions.float().unbind(1)
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * xy,
            -1.0925484305920792 * yz,
            0.31539156525252005 * (2.0 * zz - xx - yy),
            -1.0925484305920792 * xz,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3.0 * xx - yy),
            2.890611442640554 * xy * z,
            -0.4570457994644658 * y * (4.0 * zz - xx - yy),
            0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy),
            -0.4570457994644658 * x * (4.0 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3.0 * yy),
        ],
        dim=1,
    )
