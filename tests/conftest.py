"""Settings that hold for all tests."""

import os

import hypothesis

# Before numba or torch is imported, which read them once. Test arrays are small: on a large machine, handing them to
# dozens of threads takes longer than the work, and one number of threads everywhere keeps failures repeatable.
_THREADS = str(min(4, os.cpu_count() or 1))
for _variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, _THREADS)

# a busy machine must not turn a slow example into a failure
hypothesis.settings.register_profile("infnerf", deadline=None)
hypothesis.settings.load_profile("infnerf")
