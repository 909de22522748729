"""The example runs as it stands."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "quickstart.py"


def test_the_quickstart_runs_and_learns(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    words = first.split()
    assert float(words[4]) > float(words[2]) + 1.0
    assert "2 views, ['spiral.mp4', 'spiral_depth.mp4']" in second
    (folder,) = tmp_path.glob("infnerf-quickstart-*")
    assert (folder / "city.zarr" / "zarr.json").is_file()
    assert len(list((folder / "views").glob("*.png"))) == 2
