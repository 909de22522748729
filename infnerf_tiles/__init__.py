"""infnerf-tiles: level-of-detail octrees of small neural radiance fields, trained and rendered region by region."""

import os

# torch and numba bring an OpenMP pool each. By default idle threads spin and take the cores from the other pool:
# a training step with two threads on two busy cores took five times as long. The libraries read this when they load.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch keeps a compiled product for each batch size that it has met, up to a thousand of several hundred kilobytes.
# Training meets a new size at every step: without these the process grew by a gigabyte.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

__version__ = "0.1.0"

__all__ = ["__version__"]
