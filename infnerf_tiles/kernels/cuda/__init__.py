"""Triton twins of the kernels for CUDA.

Sums by atomics differ in their last bits from run to run. Every kernel takes buffers of fixed capacity and what is in
use of them as a tensor on the device, so that a training step can be captured as a graph.
"""

from infnerf_tiles.kernels.cuda.adam import adam
from infnerf_tiles.kernels.cuda.composite import composite, composite_into
from infnerf_tiles.kernels.cuda.decode import decode, decode_density, decodes
from infnerf_tiles.kernels.cuda.decode_into import decode_into, prepare_weights
from infnerf_tiles.kernels.cuda.encode import encode, encode_into
from infnerf_tiles.kernels.cuda.lanes import accumulate, mix_above, refill
from infnerf_tiles.kernels.cuda.march import march, march_packed
from infnerf_tiles.kernels.cuda.nested import fold_dense, spread_gradient
from infnerf_tiles.kernels.cuda.note import note

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
    "spread_gradient",
]

ROWS_ALONE = True
"""Whether `decode_into` gives a row the same bits whatever rows are beside it."""
CAPTURABLE = True
"""Whether a training step of these kernels waits for nothing, so that it can be captured as a graph."""
WIDEST: int | None = 64
"""Most neurons per layer that `decode_into` finds room for on the chip; None: any."""
