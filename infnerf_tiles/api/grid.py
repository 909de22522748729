"""The feature grid of an `InfNeRF`: the octree's tables and dense grids as ordinary torch parameters.

A grid of one's own is any `nn.Module` whose `forward` takes the same arguments; where it has a `remap`, that is called
when nodes come and go.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import for_device, reference
from infnerf_tiles.kernels.arena import Arena, Gradients


def kernels_for(values: Tensor) -> ModuleType:
    """The kernels for tensors like `values`: the device's own for float32, the plain torch ones for float64.

    SettingsError for other formats: half precision is for the decoder's products (`mixed_precision`), not for grids.
    """
    if values.dtype == torch.float64:
        return reference
    if values.dtype != torch.float32:
        raise SettingsError(f"feature grid: expected float32 or float64, got {values.dtype}; call model.float()")
    return for_device(values.device)


class OctreeGrid(nn.Module):
    """Sum of the trilinear feature grids on a node's chain (see `kernels.reference.encode`)."""

    def __init__(self, shape: FieldShape):
        super().__init__()
        self.tables = nn.Parameter(torch.zeros(1, shape.table_size, shape.features))
        """float32 [S, T, F]: the nodes' residual features."""
        self.dense = nn.Parameter(torch.zeros(shape.training_dense_rows, shape.features))
        """float32 [D, F]: the treelets' dense grids, each a base and its corrections."""

    def forward(
        self, position: Tensor, slot: Tensor, beta: Tensor, arena: Arena, known: Tensor | None = None
    ) -> Tensor:
        """Features [M, F], differentiable with respect to `tables` and `dense`.

        Args:
            position: float32 [M, 3] in the cube of the treelet root, [0, 1). slot: int32 [M], node of each sample.
            beta: float32 [M], weight of that node's residual. arena: the topology.
            known: features of the same samples that were computed before (`encode_into`), which saves the forward pass.
        """
        if self.tables.dtype == torch.float64:
            own = replace(arena, tables=self.tables, dense=self.dense)
            return reference.encode(position, slot, beta, own, None)
        result: Tensor = _Encode.apply(  # type: ignore[no-untyped-call]
            self.tables, self.dense, position, slot, beta, arena, known
        )
        return result

    def remap(self, source: Tensor) -> None:
        """Rearrange the nodes: new slot s takes the features of old slot source[s] (int64 [S']), zeros where -1."""
        old = self.tables.detach()
        kept = old[source.clamp(min=0)]
        self.tables.data = torch.where((source >= 0)[:, None, None], kept, torch.zeros_like(kept))
        self.tables.grad = None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # the octree that is loaded has its own number of nodes
        for name, parameter in (("tables", self.tables), ("dense", self.dense)):
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor) and found.shape != parameter.shape and found.dim() == parameter.dim():
                parameter.data = parameter.data.new_zeros(found.shape)
                parameter.grad = None
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Encode(torch.autograd.Function):
    """The kernels' `encode`, with its gradient buffers handed to autograd as gradients of the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        tables: Tensor,
        dense: Tensor,
        position: Tensor,
        slot: Tensor,
        beta: Tensor,
        arena: Arena,
        known: Tensor | None,
    ) -> Tensor:
        if known is None:
            known = torch.empty((position.shape[0], arena.features), device=position.device)
            kernels_for(tables).encode_into(position, slot, beta, arena, known)
        else:
            known = known.clone()
        ctx.save_for_backward(position, slot, beta)
        ctx.arena = arena
        ctx.num_dense_rows = dense.shape[0]
        return known

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        position, slot, beta = ctx.saved_tensors
        arena: Arena = ctx.arena
        gradients = Gradients(
            arena.tables.shape[0], arena.table_size, ctx.num_dense_rows, arena.features, arena.device
        )
        with torch.enable_grad():
            known = torch.empty((position.shape[0], arena.features), device=position.device)
            out = kernels_for(arena.tables).encode(position, slot, beta, arena, gradients, known)
            out.backward(grad.contiguous())
        return gradients.tables, gradients.dense, None, None, None, None, None
