"""Facts about the running process."""

import sys

import numpy as np
import pytest

from infnerf_tiles.process import peak_memory, release_memory, resident_memory

_LATE = 2 << 20
"""The system brings the peak up to date now and then."""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_counted_and_given_back() -> None:
    before = resident_memory()
    assert 0 < before <= peak_memory() + _LATE
    blocks = [np.full(1 << 16, 1, np.uint8) for _ in range(2048)]  # small enough to come from the heap
    keep = blocks[-1]
    held = resident_memory()
    assert held - before > 100 << 20
    del blocks
    release_memory()
    assert held - resident_memory() > 60 << 20
    assert peak_memory() + _LATE >= held
    assert keep[0] == 1
