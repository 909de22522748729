"""What all treelets share: decoder, appearance and background; trained in the seed stage, frozen afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.appearance import Appearance
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder


@dataclass(kw_only=True)
class Shared:
    """Decoder, appearance and background, and whether they learn."""

    decoder: Decoder
    appearance: Appearance
    background: Background
    trainable: bool
    learns_appearance: bool = True
    """Whether photos have transforms of their own; otherwise all stay the identity."""

    def to(self, device: torch.device) -> None:
        """Move all parts to a device, in place."""
        for part in (self.decoder, self.appearance, self.background):
            part.to(device)

    def parameters(self) -> list[torch.nn.Parameter]:
        """All shared parameters that learn."""
        appearance = list(self.appearance.parameters()) if self.learns_appearance else []
        return [*self.decoder.parameters(), *appearance, *self.background.parameters()]

    def check_finite(self, step: int) -> None:
        """NonFiniteError if a parameter that learns is NaN or infinite."""
        if not self.trainable:
            return
        for part in (self.decoder, self.appearance, self.background):
            for name, values in part.named_parameters():
                if not bool(torch.isfinite(values.detach()).all()):
                    raise NonFiniteError(
                        f"seed stage: {name} of the {type(part).__name__.lower()} is not finite after step {step}; the "
                        "last good state is kept. Lower training.lr"
                    )

    def load_arrays(
        self, decoder: Mapping[str, AnyArray], appearance: Mapping[str, AnyArray], background: Mapping[str, AnyArray]
    ) -> None:
        """Take the arrays that `to_arrays` of each part gave; ValueError if a shape differs."""
        self.decoder.load_arrays(dict(decoder))
        for parameter, array, name in (
            (self.appearance.affine, appearance["affine"], "appearance"),
            (self.background.coefficients, background["coefficients"], "background"),
        ):
            if tuple(array.shape) != tuple(parameter.shape):
                raise ValueError(f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(array.shape)}")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(np.array(array, np.float32)))
