"""Benchmarks: kernels, a full training step, drawing pictures, loading nodes, each beside a named baseline.

`python -m tests.bench` from the repository's folder runs all of them on whatever is there and prints one table.
"""

import sys
from pathlib import Path

# the helpers of the tests are modules of their own, as pytest imports them
for _folder in ("", "training", "rendering"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / _folder))
