"""What numba compiled is used again by other processes, until any compiled code of the package changes."""

import subprocess
import sys
from pathlib import Path

from infnerf_tiles import compiled

_MODULE = """
from infnerf_tiles.compiled import njit

@njit(cache=True)
def twice(x):
    return 2 * x
"""
_PROCESS = """
import sys
import infnerf_tiles.compiled
infnerf_tiles.compiled.sources = lambda: sys.argv[2]
sys.path.insert(0, sys.argv[1])
from kernel_module import twice
assert twice(21) == 42
print(sum(twice.stats.cache_hits.values()))
"""


def hits(folder: Path, sources: str) -> int:
    """How many of its functions a process found compiled."""
    command = [sys.executable, "-c", _PROCESS, folder, sources]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_a_change_anywhere_compiles_anew(tmp_path: Path) -> None:
    (tmp_path / "kernel_module.py").write_text(_MODULE)
    assert [hits(tmp_path, sources) for sources in ("a", "a", "b", "b")] == [0, 1, 0, 1]


def test_sources_are_the_files_with_kernels() -> None:
    digest = compiled.sources()
    assert len(digest) == 64
    compiled.sources.cache_clear()
    assert compiled.sources() == digest
