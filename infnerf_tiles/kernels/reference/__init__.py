"""Plain torch twins of the kernels: readable, slow, on any device. What the fast twins are tested against.

They work in the number format they are given (float64 parameters give float64 results); positions and other sample
columns come out in the format of the arena's tables, float32 at least.
"""

from infnerf_tiles.kernels.reference.adam import adam
from infnerf_tiles.kernels.reference.composite import composite, composite_into
from infnerf_tiles.kernels.reference.decode import decode_into, prepare_weights
from infnerf_tiles.kernels.reference.encode import encode, encode_into
from infnerf_tiles.kernels.reference.lanes import accumulate, mix_above, refill
from infnerf_tiles.kernels.reference.march import march
from infnerf_tiles.kernels.reference.nested import fold_dense, spread_gradient
from infnerf_tiles.kernels.reference.note import note
from infnerf_tiles.kernels.reference.packed import march_packed

__all__ = [
    "accumulate",
    "adam",
    "composite",
    "composite_into",
    "decode_into",
    "encode",
    "encode_into",
    "fold_dense",
    "march",
    "march_packed",
    "mix_above",
    "note",
    "prepare_weights",
    "refill",
    "spread_gradient",
]

ROWS_ALONE = False
"""Whether `decode_into` gives a row the same bits whatever rows are beside it."""
CAPTURABLE = False
"""Whether a training step of these kernels waits for nothing, so that it can be captured as a graph."""
WIDEST: int | None = None
"""Most neurons per layer that `decode_into` finds room for on the chip; None: any."""
