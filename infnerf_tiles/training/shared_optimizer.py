"""Adam for decoder, background and appearance.

On the processor parameter by parameter; on a device as one buffer, without a look from the host.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray, Float32
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import VERTEX_BLOCK
from infnerf_tiles.training.shared import Shared


class HostAdam:
    """Adam (Kingma and Ba 2015), the same to the last bit as torch's, which brings torch's compiler along: a second and
    a half and 140 MB in every process that trains."""

    def __init__(self, parameters: list[torch.nn.Parameter], *, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self.parameters, self._beta1, self._beta2 = parameters, beta1, beta2
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = [0] * len(parameters)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step with the gradients, which are dropped; parameters without one stay as they are."""
        for k, parameter in enumerate(self.parameters):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            self._steps[k] += 1
            first, second, step = self._first[k], self._second[k], self._steps[k]
            first.lerp_(gradient, 1.0 - self._beta1)
            second.mul_(self._beta2).addcmul_(gradient, gradient, value=1.0 - self._beta2)
            spread = second.sqrt() / math.sqrt(1.0 - self._beta2**step)
            parameter.addcdiv_(first, spread.add_(1e-15), value=-rate / (1.0 - self._beta1**step))

    def save(self) -> dict[str, AnyArray]:
        """Moments and step counts of the parameters that had a gradient."""
        arrays: dict[str, AnyArray] = {}
        for k, step in enumerate(self._steps):
            if step:
                arrays[f"shared_{k}_exp_avg"] = self._first[k].numpy()
                arrays[f"shared_{k}_exp_avg_sq"] = self._second[k].numpy()
                arrays[f"shared_{k}_step"] = np.array([step], np.float32)
        return arrays

    def load(self, arrays: Mapping[str, AnyArray]) -> None:
        """Take what `save` gave."""
        for k in range(len(self.parameters)):
            if f"shared_{k}_step" in arrays:
                self._steps[k] = int(arrays[f"shared_{k}_step"][0])
                self._first[k].copy_(torch.from_numpy(np.array(arrays[f"shared_{k}_exp_avg"])))
                self._second[k].copy_(torch.from_numpy(np.array(arrays[f"shared_{k}_exp_avg_sq"])))


class SharedOptimizer:
    """The parameters become views of one buffer that the kernel for features updates too.

    Entries with zero gradient (photos without a ray in the batch) keep their moments, unlike in torch's Adam.
    """

    def __init__(self, shared: Shared, features: int, device: torch.device):
        self.parameters = shared.parameters()
        self._sizes = [p.numel() for p in self.parameters]
        self._total = sum(self._sizes)
        width = VERTEX_BLOCK * features
        rows = -(-self._total // width)
        self._value, self._gradient, self._first, self._second = torch.zeros((4, rows, width), device=device).unbind()
        self._marks = torch.ones(rows, dtype=torch.uint8, device=device)
        self._kernels = for_device(device)
        for parameter, place in zip(self.parameters, self._parts(self._value), strict=True):
            place.copy_(parameter.detach().reshape(-1))
            parameter.data = place.view(parameter.shape)

    def _parts(self, buffer: Tensor) -> tuple[Tensor, ...]:
        return torch.split(buffer.view(-1)[: self._total], self._sizes)

    def update(self, gradients: tuple[Tensor | None, ...], scalars: Tensor, enabled: Tensor) -> None:
        """One Adam step; scalars and enabled as `adam` takes them. A gradient of None counts as zero."""
        flat = [
            torch.zeros(size, device=self._value.device) if g is None else g.reshape(-1)
            for g, size in zip(gradients, self._sizes, strict=True)
        ]
        torch.cat(flat, out=self._gradient.view(-1)[: self._total])
        self._marks.fill_(1)
        self._kernels.adam(
            self._value, self._gradient, self._first, self._second, self._marks, scalars=scalars, enabled=enabled
        )

    def moments(self) -> list[tuple[Float32, Float32]]:
        """(first, second) of each parameter, in its shape."""
        return [
            (m.cpu().numpy().reshape(p.shape), v.cpu().numpy().reshape(p.shape))
            for p, m, v in zip(self.parameters, self._parts(self._first), self._parts(self._second), strict=True)
        ]

    def load_moments(self, values: list[tuple[Float32, Float32]]) -> None:
        """Take what `moments` gave."""
        for (first, second), m, v in zip(values, self._parts(self._first), self._parts(self._second), strict=True):
            m.copy_(torch.from_numpy(first).reshape(-1))
            v.copy_(torch.from_numpy(second).reshape(-1))
