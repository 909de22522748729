"""Facts about the running process."""

import subprocess
import sys

import pytest

_CODE = """
import numpy as np

from infnerf_tiles.process import peak_memory, release_memory, resident_memory

late = 2 << 20  # the system brings the peak up to date now and then
before = resident_memory()
assert 0 < before <= peak_memory() + late
blocks = [np.full(1 << 16, 1, np.uint8) for _ in range(2048)]  # small enough to come from the heap
keep = blocks[-1]
held = resident_memory()
assert held - before > 100 << 20, (before, held)
del blocks
release_memory()
assert held - resident_memory() > 60 << 20, (held, resident_memory())
assert peak_memory() + late >= held
assert keep[0] == 1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_is_counted_and_given_back() -> None:
    """In a process of its own: in one that has run tests, what is free on the heap already would be used first."""
    subprocess.run([sys.executable, "-c", _CODE], check=True, timeout=120)
