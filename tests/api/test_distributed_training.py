"""Several processes train as one: the same losses, and an end when one of them is lost."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from api.api_models import ball_photos
from api.ranks import train

from infnerf_tiles import InfNeRF, InfNeRFTrainer, InfNeRFTrainerConfig
from infnerf_tiles.errors import SettingsError

SCRIPT = Path(__file__).parent / "ranks.py"
STEPS = 100


Ranks = list["subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Callable[..., Ranks]]:
    """Starts both processes of a training; none of them outlives the test."""
    with ExitStack() as stack:

        def started(folder: Path, rays: int, steps: int, killed_at: int = -1) -> Ranks:
            port = str(_free_port())
            environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, str(SCRIPT), str(folder), str(rays), str(steps), str(killed_at)]
            ranks = []
            for rank in range(2):
                process = subprocess.Popen(
                    command, env={**environment, "RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )  # fmt: skip
                stack.enter_context(process)
                stack.callback(process.kill)
                ranks.append(process)
            return ranks

        yield started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _finished(process: "subprocess.Popen[str]", seconds: float = 120.0) -> tuple[int, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def test_two_processes_learn_as_one_with_the_doubled_batch(
    tmp_path: Path, start: Callable[..., Ranks]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ranks = start(two, 64, STEPS)
    expected = train(one, distributed=False, rays=128, steps=STEPS, killed_at=-1)
    for process in ranks:
        code, errors = _finished(process)
        assert code == 0, errors
    for rank in range(2):
        found = json.loads((two / f"losses{rank}.json").read_text())
        assert len(found) == STEPS
        # the group is gone with its threads: one of them that lived on could abort the process at its end
        assert not [name for name in json.loads((two / f"threads{rank}.json").read_text()) if "gloo" in name]
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-3
    # the octree has grown, and is the same everywhere
    nodes = [json.loads((two / f"nodes{rank}.json").read_text()) for rank in range(2)]
    assert nodes[0] == nodes[1]
    assert len(nodes[0]) == pytest.approx(len(json.loads((one / "nodes0.json").read_text())), rel=0.2)
    assert len(nodes[0]) > 1
    assert sum(expected[-10:]) / 10 < 0.7 * expected[0]


def test_a_killed_process_ends_the_other_with_a_clear_error(
    tmp_path: Path, start: Callable[..., Ranks]
) -> None:
    ranks = start(tmp_path, 32, 5000, killed_at=5)
    assert _finished(ranks[1])[0] == 9
    code, errors = _finished(ranks[0], 60.0)
    assert code == 1
    assert "TrainingError" in errors
    assert "process 0 of 2 lost another one" in errors


def test_without_torchrun_the_error_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="torchrun"):
        InfNeRFTrainer(InfNeRF(), ball_photos(), InfNeRFTrainerConfig(distributed=True))
