"""Exposure and white balance of each photo as a 3x4 affine colour transform, outside the field."""

import torch
from torch import Tensor, nn

from infnerf_tiles.arrays import Float32


class Appearance(nn.Module):
    """One affine transform per photo: shown = A rgb + b. Starts as the identity."""

    def __init__(self, num_photos: int):
        super().__init__()
        identity = torch.eye(3, 4).repeat(num_photos, 1, 1)
        self.affine = nn.Parameter(identity)
        """float32 [photos, 3, 4]."""

    def forward(self, photo: Tensor, rgb: Tensor) -> Tensor:
        """Colours [Q, 3] as photo int64 [Q] would show the scene's colours rgb [Q, 3]."""
        affine = self.affine[photo]
        return torch.baddbmm(affine[:, :, 3:], affine[:, :, :3], rgb[:, :, None]).squeeze(2)

    def apply_rows(self, photo: Tensor, rgb: Tensor) -> Tensor:
        """`forward` for many rays: its gradient needs no sorting of the photos."""
        affine = self.affine.index_select(0, photo)
        return (affine[:, :, :3] * rgb[:, None, :]).sum(dim=2) + affine[:, :, 3]

    def distance_from_identity(self) -> Tensor:
        """Mean squared distance of the transforms from the identity: fixes what the photos cannot (a common factor)."""
        return ((self.affine - torch.eye(3, 4, device=self.affine.device)) ** 2).mean()


def mean_affine(affine: Float32) -> Float32:
    """The transform of an average photo: float32 [3, 4] from [photos, 3, 4]."""
    result: Float32 = affine.mean(axis=0).astype(affine.dtype)
    return result
