"""Settings that hold for all tests."""

import os
import secrets
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import numpy as np

# Before numba or torch is imported, which read them once. Test arrays are small: on a large machine, handing them to
# dozens of threads takes longer than the work, and one number of threads everywhere keeps failures repeatable.
_THREADS = str(min(4, os.cpu_count() or 1))
for _variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, _THREADS)

# a busy machine must not turn a slow example into a failure
hypothesis.settings.register_profile("infnerf", deadline=None)
hypothesis.settings.load_profile("infnerf")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> "np.random.Generator":
    """Random numbers from a fresh seed, or from INFNERF_TEST_SEED; a failure's report names it."""
    import numpy as np  # here: it reads the variables above when it is imported

    seed = int(os.environ.get("INFNERF_TEST_SEED", "") or secrets.randbits(32))
    request.node.add_report_section("setup", "seed", f"INFNERF_TEST_SEED={seed}")
    return np.random.default_rng(seed)
