"""numba twins of the kernels for the CPU: no atomics, so the same input gives the same bits every time."""

from infnerf_tiles.kernels.cpu.adam import adam
from infnerf_tiles.kernels.cpu.composite import composite, composite_into
from infnerf_tiles.kernels.cpu.decode import decode, decode_density, decode_into, decodes
from infnerf_tiles.kernels.cpu.encode import encode, encode_into
from infnerf_tiles.kernels.cpu.march import march
from infnerf_tiles.kernels.cpu.note import note
from infnerf_tiles.kernels.cpu.packed import march_packed
from infnerf_tiles.kernels.cpu.threads import set_threads
from infnerf_tiles.kernels.reference.decode import prepare_weights
from infnerf_tiles.kernels.reference.lanes import accumulate, mix_above, refill
from infnerf_tiles.kernels.reference.nested import fold_dense, spread_gradient

__all__ = [
    "accumulate",
    "adam",
    "composite",
    "composite_into",
    "decode",
    "decode_density",
    "decode_into",
    "decodes",
    "encode",
    "encode_into",
    "fold_dense",
    "march",
    "march_packed",
    "mix_above",
    "note",
    "prepare_weights",
    "refill",
    "set_threads",
    "spread_gradient",
]

ROWS_ALONE = True
"""Whether `decode_into` gives a row the same bits whatever rows are beside it."""
CAPTURABLE = False
"""Whether a training step of these kernels waits for nothing, so that it can be captured as a graph."""
WIDEST: int | None = None
"""Most neurons per layer that `decode_into` finds room for on the chip; None: any."""
