"""Adam for decoder, background and appearance without a look from the host: all their parameters as one buffer."""

import torch
from torch import Tensor

from infnerf_tiles.arrays import Float32
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import VERTEX_BLOCK
from infnerf_tiles.training.shared import Shared


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
