"""What worker processes gain: `python -m tests.bench.workers [FOLDER] [--steps N] [--workers 1,2]`.

Trains the overview of a city once, then its band of four treelets of equal work, once for each number of workers with
one processor thread each, and prints a table. `wall`: of the whole call that trains the band, starting the workers
included. `band`: from the first task to the last commit. `busy`: what the treelets took, added up. The pictures of the
scenes are compared: they have to be equally good.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train

import infnerf_tiles  # noqa: F401  before torch
from infnerf_tiles.settings import load_settings
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import write_city_dataset

_RUN = """
import sys, time
import infnerf_tiles
if __name__ == "__main__":
    import json
    from infnerf_tiles.pipelines.cluster import Workplace
    from infnerf_tiles.pipelines.train import train
    scene, workers = sys.argv[1], int(sys.argv[2])
    begun = []
    started = time.perf_counter()
    summary = train(
        scene, place=Workplace(workers=workers, threads=1),
        progress=lambda *_: begun.append(time.perf_counter()) if not begun else None,
    )
    ended = time.perf_counter()
    sys.stdout.write(json.dumps({
        "wall": ended - started, "band": ended - begun[0], "treelets": summary.treelets, "failed": summary.failed,
        "busy": sum(report.seconds for report in summary.reports),
        "longest": max(report.seconds for report in summary.reports),
    }))
"""


def main() -> None:
    """Run the bench; exit code 1 if a training fails or the pictures differ by more than 0.05 dB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help="of each treelet")
    parser.add_argument("--workers", default="1,2")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.workers.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.folder or Path(temporary)
        scene = prepare(base, arguments.steps)
        rows = [measure(base, scene, workers) for workers in counts]
    names = ("workers", "wall s", "band s", "busy s", "longest s", "speed-up", "PSNR dB")
    sys.stdout.write(" ".join(f"{name:>9}" for name in names) + "\n")
    for row in rows:
        times = " ".join(f"{row[name]:9.1f}" for name in ("wall", "band", "busy", "longest"))
        sys.stdout.write(f"{row['workers']:9.0f} {times} {rows[0]['wall'] / row['wall']:9.2f} {row['psnr']:9.3f}\n")
    psnr = [row["psnr"] for row in rows]
    sys.exit(int(max(psnr) - min(psnr) > 0.05))


def prepare(base: Path, steps: int) -> str:
    """A scene whose overview is trained, and a band of four treelets is not."""
    data, scene = base / "city", str(base / "overview.zarr")
    write_city_dataset(data, blocks=(2, 2), num_photos=40, size=(192, 144), supersample=1)
    shape = ["octree.max_level=3", "octree.treelet_height=3", "octree.growth=0", f"training.steps={steps}"]
    build(data, scene, load_settings("demo", shape), overwrite=True)
    asked = iter([False, False])  # before the first band, before its treelet
    train(scene, stop=lambda: next(asked, True))
    with SceneStore.open(scene) as store:
        index = store.read_index()
        left = int((index.treelet_states != 1).sum())
    if left != 4:
        sys.stderr.write(f"expected four treelets that are left to train, got {left}\n")
        sys.exit(1)
    return scene


def measure(base: Path, scene: str, workers: int) -> dict[str, float]:
    """Train a copy's band in a process of its own and score the copy."""
    copy, script = str(base / f"workers-{workers}.zarr"), base / "drive.py"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(scene, copy)
    script.write_text(_RUN)  # worker processes start from the driver's file
    command = [sys.executable, str(script), copy, str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(1)
    row = json.loads(done.stdout.splitlines()[-1])
    if row["failed"] or row["treelets"] != 4:
        sys.stderr.write(f"{row}\n")
        sys.exit(1)
    psnr = evaluate(copy, data=str(base / "city")).levels[0].psnr
    return {**row, "workers": workers, "psnr": psnr or 0.0}


if __name__ == "__main__":
    main()
