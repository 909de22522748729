"""Kernels of the processor are compiled by the first process that needs them, and by no later one."""

import os
import subprocess
import sys
from pathlib import Path

from training.small_scenes import build_scene, copy_scene, tiny, write_city

_WORK = """
import sys
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train
train(sys.argv[1])
evaluate(sys.argv[1])
"""


def compiled(scene: str) -> list[str]:
    """The kernels that a process compiled on its way through training and scoring a scene."""
    found = subprocess.run(
        [sys.executable, "-c", _WORK, scene], env={**os.environ, "NUMBA_DEBUG_CACHE": "1"},
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    assert "[cache] data loaded" in found
    return [line for line in found.splitlines() if "[cache] data saved" in line]


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    scene = build_scene(write_city(tmp_path / "photos"), tmp_path / "scene.zarr", tiny("training.passes=0.1"))
    again = copy_scene(scene, tmp_path / "again.zarr")
    compiled(scene)
    assert compiled(again) == []
