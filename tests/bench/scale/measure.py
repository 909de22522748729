"""Time, peak memory and bytes per photo against size: `python tests/bench/scale/measure.py [FOLDER] [--sizes N,N,...]`.

Writes surveys of each size (photos of 64 x 48 pixels; the largest has poses, points and tracks alone), plans and builds
each in a process of its own, and prints one JSON line per run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_RUN = """
import json, sys, time
from pathlib import Path
import infnerf_tiles
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import load_settings
folder, scene, what, photos = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "photos"
settings = load_settings("city", ["octree.cells=32", "field.table_log2=12"])
started = time.perf_counter()
if what == "plan":
    from infnerf_tiles.pipelines.plan import plan
    found = plan(folder, settings, check_photos=photos)
    numbers = {"nodes": sum(found.nodes_per_level), "store_bytes": found.store_bytes, "files": found.store_files}
else:
    from infnerf_tiles.pipelines.build import build
    found = build(folder, scene, settings, overwrite=True)
    size = sum(p.stat().st_size for p in Path(scene).rglob("*") if p.is_file())
    numbers = {"nodes": sum(found.nodes_per_level), "scene_bytes": size}
seconds = time.perf_counter() - started
sys.stdout.write(json.dumps({**numbers, "seconds": seconds, "peak_bytes": peak_memory()}))
"""


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--sizes", default="200,2000,20000")
    parser.add_argument("--points", type=int, default=375, help="points per photo, each in eight photos")
    arguments = parser.parse_args()
    from infnerf_tiles.synthetic.survey import write_survey

    with tempfile.TemporaryDirectory() as temporary:
        base = arguments.folder or Path(temporary)
        sizes = [int(text) for text in arguments.sizes.split(",")]
        for num_photos in sizes:
            folder = base / f"survey-{num_photos}"
            if not (folder / "survey.json").is_file():
                write_survey(folder, num_photos=num_photos, points_per_photo=arguments.points)
            for what in ("plan", "build"):
                command = [sys.executable, "-c", _RUN, str(folder), str(base / f"{num_photos}.zarr"), what, "photos"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.stderr.write(done.stderr)
                    sys.exit(done.returncode)
                found = json.loads(done.stdout.splitlines()[-1])
                found["seconds_per_1000_photos"] = 1000 * found["seconds"] / num_photos
                found["peak_bytes_per_photo"] = found["peak_bytes"] / num_photos
                sys.stdout.write(json.dumps({"photos": num_photos, "run": what, **found}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
