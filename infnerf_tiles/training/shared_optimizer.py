"""Adam for decoder, background and appearance, as one buffer and without a look from the host."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.training.shared import Shared

_EPS = 1e-15


class SharedOptimizer:
    """Adam (Kingma and Ba 2015) on parameters that become views of one buffer: a few operations a step, on any device.

    Unlike the kernel for features it moves entries without a gradient on by their momentum, as torch's Adam does: with
    the kernel held-out photos were 0.1 to 0.3 dB worse in the three trainings compared. torch's own brings its compiler
    along, a second and a half and 140 MB in every process that trains.
    """

    def __init__(self, shared: Shared, device: torch.device, *, beta1: float = 0.9, beta2: float = 0.99):
        self.parameters, self._beta1, self._beta2 = shared.parameters(), beta1, beta2
        self._sizes = [p.numel() for p in self.parameters]
        self._value, self._first, self._second = torch.zeros((3, sum(self._sizes)), device=device).unbind()
        for parameter, place in zip(self.parameters, torch.split(self._value, self._sizes), strict=True):
            place.copy_(parameter.detach().reshape(-1))
            parameter.data = place.view(parameter.shape)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], scalars: Tensor, enabled: Tensor | None = None) -> None:
        """One step; scalars and enabled as `adam` takes them. A gradient of None counts as zero."""
        gradient = torch.cat(
            [
                torch.zeros(size, device=self._value.device) if g is None else g.reshape(-1)
                for g, size in zip(gradients, self._sizes, strict=True)
            ]
        )
        rate, correction1, correction2 = scalars.unbind()
        first = torch.lerp(self._first, gradient, 1.0 - self._beta1)
        second = (self._beta2 * self._second).addcmul_(gradient, gradient, value=1.0 - self._beta2)
        step = first / ((second / correction2).sqrt_() + _EPS) * (rate / correction1)
        now = (self._value - step, first, second)
        for kept, changed in zip((self._value, self._first, self._second), now, strict=True):
            # not a product: what is left out may not be finite
            kept.copy_(changed if enabled is None else torch.where(enabled != 0, changed, kept))

    def save(self) -> dict[str, AnyArray]:
        """First and second moments of each parameter, in its shape."""
        arrays: dict[str, AnyArray] = {}
        for name, buffer in self._named():
            for k, (parameter, part) in enumerate(zip(self.parameters, torch.split(buffer, self._sizes), strict=True)):
                arrays[name.format(k)] = part.cpu().numpy().reshape(parameter.shape).copy()
        return arrays

    def load(self, arrays: Mapping[str, AnyArray]) -> None:
        """Take what `save` gave."""
        for name, buffer in self._named():
            for k, part in enumerate(torch.split(buffer, self._sizes)):
                part.copy_(torch.from_numpy(np.array(arrays[name.format(k)])).reshape(-1))

    def _named(self) -> tuple[tuple[str, Tensor], ...]:
        return ("shared_{}_exp_avg", self._first), ("shared_{}_exp_avg_sq", self._second)
