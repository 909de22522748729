"""Packed samples, picked."""

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
