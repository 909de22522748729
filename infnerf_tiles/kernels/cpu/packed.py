"""`march_packed` by the numba march: on the CPU the host is the device, so nothing has to be kept from waiting."""

from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples, Rays
from infnerf_tiles.kernels.cpu.march import march
from infnerf_tiles.kernels.reference.packed import pack_march


def march_packed(
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    num_rays: Tensor,
    out: PackedSamples,
    start: Tensor | None = None,
    limit: int | None = None,
    keep: int | None = None,
    adapt: bool = False,
) -> None:
    """March the first `num_rays` rays into buffers of fixed capacity; arguments as in the reference twin."""
    pack_march(
        march, rays, arena, settings, num_rays=num_rays, out=out, start=start, limit=limit, keep=keep, adapt=adapt
    )  # fmt: skip
