"""Packed samples, picked and moved."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Samples


def chosen(samples: Samples, mask: Tensor) -> Samples:
    """The samples where bool [M] `mask` is set."""
    before = torch.cat([samples.ray_start.new_zeros(1), torch.cumsum(mask, 0)])
    columns = {
        field.name: getattr(samples, field.name)[mask]
        for field in fields(Samples)
        if field.name not in ("ray_start", "next_step")
    }
    return replace(samples, ray_start=before[samples.ray_start], **columns)


def on_host(samples: Samples) -> Samples:
    """The samples on the CPU, in float32: as the rules of training take them."""
    columns = {}
    for field in fields(Samples):
        value = getattr(samples, field.name).detach().cpu()
        columns[field.name] = value.float() if value.is_floating_point() else value
    return Samples(**columns)
