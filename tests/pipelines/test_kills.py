"""Twenty kills at random moments, of driver or worker: the scene is sound and as good as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from infnerf_tiles.pipelines.build import build
from infnerf_tiles.pipelines.evaluate import evaluate
from infnerf_tiles.pipelines.train import train
from training.small_scenes import copy_scene

from infnerf_tiles.settings import load_settings
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify
from infnerf_tiles.synthetic.capture import write_city_dataset

KILLS = 20
LEAST_SECONDS, MOST_SECONDS = 4.0, 12.0
"""Between kills; starting again takes some five, so that the later ones meet a training that has come further."""


def _drive(scene: str) -> subprocess.Popen[bytes]:
    code = (
        "from infnerf_tiles.pipelines.train import train\n"
        "from infnerf_tiles.pipelines.cluster import Workplace\n"
        f"if __name__ == '__main__': train({scene!r}, place=Workplace(workers=2))\n"
    )
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    script = Path(scene).with_suffix(".py")
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script)], **quiet)


def _workers(pid: int) -> list[int]:
    """Its worker processes; the other child that `multiprocessing` starts has nothing to lose."""
    asked = ["ps", "-o", "pid=,args=", "--ppid", str(pid)]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "spawn_main" in line]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_twenty_random_kills(tmp_path: Path) -> None:
    data = tmp_path / "city"
    write_city_dataset(data, blocks=(2, 2), num_photos=40, size=(192, 144), supersample=1)
    scene = str(tmp_path / "killed.zarr")
    build(data, scene, load_settings("demo", ["training.checkpoint_seconds=3.0", "training.passes=6"]))
    quiet = copy_scene(scene, tmp_path / "quiet.zarr")
    rng = random.Random(0)
    kills = 0
    for _ in range(400):
        driver = _drive(scene)
        while driver.poll() is None and kills < KILLS:
            time.sleep(rng.uniform(LEAST_SECONDS, MOST_SECONDS))
            victims = [driver.pid, *_workers(driver.pid)]
            if driver.poll() is None:
                victim = rng.choice(victims)
                os.kill(victim, signal.SIGKILL)
                kills += 1
                if victim == driver.pid:
                    break
        driver.wait()
        if driver.returncode == 0:
            break
    with SceneStore.open(scene) as store:
        assert not verify(store).damage
        assert (store.read_index().treelet_states == TreeletState.TRAINED).all()
    train(quiet)
    scores = [evaluate(s, data=str(data)).levels[0].psnr for s in (scene, quiet)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert abs(scores[0] - scores[1]) <= 0.2
    assert kills == KILLS
