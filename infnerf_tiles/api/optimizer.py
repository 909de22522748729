"""Adam for feature grids as a torch optimizer, and what becomes of any optimizer's state when the octree changes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infnerf_tiles.api.grid import OctreeGrid, kernels_for
from infnerf_tiles.api.octree_model import OctreeModel
from infnerf_tiles.kernels.arena import VERTEX_BLOCK

NETWORK_RATE = 0.3
"""Learning rate of decoder, background and appearance relative to the features'."""


class FieldAdam(Optimizer):
    """The `adam` kernel as a torch optimizer: entries without a gradient keep their value and their moments.

    Most features see no sample in a step; ordinary Adam would go on moving them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @classmethod
    def of_model(cls, model: OctreeModel, lr: float) -> "FieldAdam":
        """The grids at `lr`, everything else at 0.3 of it."""
        grids = [p for p in model.grid.parameters() if p.requires_grad]
        known = {id(p) for p in grids}
        others = [p for p in model.parameters() if id(p) not in known and p.requires_grad and p.numel()]
        groups = [{"params": grids, "lr": lr}, {"params": others, "lr": lr * NETWORK_RATE}]
        return cls([group for group in groups if group["params"]], lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; gradients are zero afterwards."""
        if closure is not None:
            raise ValueError("FieldAdam.step: expected no closure; it computes no loss")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.numel():
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                width = _width(parameter)
                gradient = parameter.grad.contiguous().view(-1, width)
                kernels_for(parameter).adam(
                    parameter.data.view(-1, width), gradient, state["exp_avg"].view(-1, width),
                    state["exp_avg_sq"].view(-1, width), (gradient != 0).any(dim=1).to(torch.uint8),
                    step=state["step"], rate=group["lr"],
                    beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
                )  # fmt: skip


def _width(parameter: Tensor) -> int:
    """Entries that are passed over together: a block of vertices where that divides the parameter."""
    block = VERTEX_BLOCK * parameter.shape[-1]
    return block if parameter.dim() > 1 and parameter.numel() % block == 0 else parameter.shape[-1]


def remap_optimizer(optimizer: Optimizer, model: nn.Module, source: Tensor) -> None:
    """After the octree changed, rearrange what an optimizer keeps per node as the tables were (`OctreeGrid.remap`).

    Works for every optimizer whose state tensors have the shape of their parameter.
    """
    for module in model.modules():
        if not isinstance(module, OctreeGrid):
            continue
        state = optimizer.state.get(module.tables, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() == 3 and value.shape[1:] == module.tables.shape[1:]:
                at = source.to(value.device)
                rows = value[at.clamp(min=0)]
                state[name] = torch.where((at >= 0)[:, None, None], rows, torch.zeros_like(rows))
