"""A worker's memory keeps to its budget, however much larger the photos are. Real files, real processes."""

import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.cluster import Workplace
from infnerf_tiles.pipelines.plan import Budgets, plan
from infnerf_tiles.pipelines.train import train

from infnerf_tiles.settings import load_settings
from infnerf_tiles.synthetic.survey import write_survey
from infnerf_tiles.training.pixel_store import RESIDENT_PATCH_BYTES
from infnerf_tiles.training.pixels import PATCH

RAM = 800 << 20
"""A process that has loaded torch and numba, and trains nothing, takes half of it."""
SIZE = (1632, 1224)
TIMES = 10
"""The photos, decoded, over the budget."""


def _write_photos(folder: Path, count: int) -> None:
    """As many photos as poses, all with the same content: what they show does not matter, how much does."""
    write_survey(folder, num_photos=count, points_per_photo=60, size=SIZE, photos=False)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3)).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)), quality=80)
    (folder / "images").mkdir()
    first = folder / "images" / "photo_000000.jpg"
    first.write_bytes(jpeg)
    for i in range(1, count):
        os.link(first, folder / "images" / f"photo_{i:06d}.jpg")


class _Peaks(threading.Thread):
    """Looks at the peaks of this process's worker processes until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.of: dict[int, int] = {}
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.25):
            asked = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
            for line in subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines():
                if "spawn_main" in line:
                    self._look(int(line.split()[0]))

    def _look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self.of[pid] = max(self.of.get(pid, 0), 1024 * int(line.split()[1]))

    def stop(self) -> None:
        self._done.set()
        self.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_a_worker_keeps_to_its_budget_although_the_photos_are_ten_times_larger(tmp_path: Path) -> None:
    count = TIMES * RAM // (3 * SIZE[0] * SIZE[1]) + 1
    _write_photos(tmp_path / "survey", count)
    settings = load_settings(
        None,
        [
            "data.downscale=2", "octree.cells=32", "octree.max_level=4", "octree.min_points=4", "field.table_log2=10",
            "field.hidden=32", "training.steps=40", "training.samples_per_step=4096",
        ],
    )  # fmt: skip
    budgets = Budgets(ram=RAM)
    scene = str(tmp_path / "scene.zarr")
    foretold = plan(tmp_path / "survey", settings, budgets=budgets, threads=1)
    assert foretold.ram_bytes <= RAM
    assert foretold.pixel_bytes is not None
    build(tmp_path / "survey", scene, settings, budgets=budgets)
    watch = _Peaks()
    watch.start()
    summary = train(scene, budgets=budgets, place=Workplace(workers=1, threads=1))
    watch.stop()
    assert summary.remaining == 0
    assert watch.of
    peaks = [*watch.of.values(), *(report.peak_bytes for report in summary.reports)]
    assert 0 < max(peaks) <= RAM
    # the pixels of a treelet did not fit into what was left for them: they were streamed
    pixels = max(report.pixels for report in summary.reports if report.treelet != "seed")
    assert pixels / PATCH**2 * RESIDENT_PATCH_BYTES > foretold.pixel_bytes
