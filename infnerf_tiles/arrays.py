"""Shape and dtype checks at public boundaries, once and in one way."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
AnyArray = NDArray[Any]


def check_shape(name: str, array: AnyArray, shape: Sequence[int | None]) -> None:
    """Raise ValueError unless `array` has the given shape; None in `shape` matches any length."""
    got = array.shape
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got, strict=True)):
        want_text = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise ValueError(f"{name}: expected shape {want_text}, got {tuple(got)}")
