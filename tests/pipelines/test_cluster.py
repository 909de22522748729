"""Worker processes: the same result as in this process, deaths and refusals, and what a lost scheduler says."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from infnerf_tiles.pipelines.cluster import Cluster, InProcess, Workplace, open_executor
from infnerf_tiles.pipelines.train import train
from training.small_scenes import build_scene, copy_scene, differences, learned, tiny, write_city

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import BudgetError, DatasetError, SettingsError, TrainingError
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.verify import verify

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
SETTINGS = tiny("training.passes=0.25", "octree.treelet_height=1", "octree.max_level=1", "octree.min_points=60")


# --- task functions, which worker processes import from here ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    folder: str
    name: str = "job"
    seconds: float = 0.0


def leave_mark(job: Job, progress: Any) -> tuple[int, int]:
    """A file for each start; returns the process and how many ran at once with it."""
    folder = Path(job.folder)
    (folder / f"{job.name}-{os.getpid()}-{time.monotonic_ns()}.start").touch()
    running = folder / f"{job.name}.running"
    running.touch()
    time.sleep(job.seconds)
    at_once = len(list(folder.glob("*.running")))
    running.unlink()
    progress(job.name, 1.0, 20.0)
    return os.getpid(), at_once


def refuse(job: Job, progress: Any) -> None:
    del progress
    (Path(job.folder) / f"{time.monotonic_ns()}.start").touch()
    raise DatasetError(f"{job.name} cannot be used")


def die(job: Job, progress: Any) -> None:
    del job, progress
    os.kill(os.getpid(), signal.SIGKILL)


def look_around(job: Job, progress: Any) -> tuple[int, int, dict[str, str]]:
    """Threads of torch and numba once a task has set them, and the environment that the process began with."""
    import numba
    import torch

    from infnerf_tiles.kernels.cpu import set_threads

    del job, progress
    set_threads(1)
    return torch.get_num_threads(), numba.get_num_threads(), dict(os.environ)  # type: ignore[attr-defined]


def starts(folder: Path, name: str = "") -> int:
    return len(list(folder.glob(f"{name}*.start")))


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with Cluster(Workplace(workers=2, threads=1)) as cluster:
        yield cluster


# --- the executors ---------------------------------------------------------------------------------------------------


def test_in_this_process_higher_priorities_go_first_and_the_rest_in_order(tmp_path: Path) -> None:
    order: list[str] = []
    executor = InProcess(lambda name, *_: order.append(name))
    for name, priority in (("a", 0), ("b", 0), ("c", 1)):
        executor.submit(name, leave_mark, Job(str(tmp_path), name), trains=True, priority=priority)
    assert [executor.next().key for _ in range(3)] == ["c", "a", "b"] == order


def test_a_worker_trains_one_treelet_at_a_time_and_decodes_meanwhile(two: Cluster, tmp_path: Path) -> None:
    assert two.capacity == 2
    for k in range(4):
        two.submit(f"t{k}", leave_mark, Job(str(tmp_path), f"t{k}", 0.3), trains=True)
    results = [two.next().result for _ in range(4)]
    assert {pid for pid, _ in results} - {os.getpid()}
    assert max(at_once for _, at_once in results) <= 2
    for k in range(2):
        two.submit(f"train{k}", leave_mark, Job(str(tmp_path), f"train{k}", 1.0), trains=True)
        two.submit(f"decode{k}", leave_mark, Job(str(tmp_path), f"decode{k}", 0.5), trains=False)
    assert max(two.next().result[1] for _ in range(4)) > 2


def test_a_worker_has_one_thread_and_keeps_its_memory(two: Cluster, tmp_path: Path) -> None:
    two.submit("x", look_around, Job(str(tmp_path)), trains=True)
    torch_threads, numba_threads, environment = two.next().result
    assert (torch_threads, numba_threads) == (1, 1)
    # what was set outside counts; tasks set their own number of threads
    assert environment["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert not [name for name in environment if name.startswith("MALLOC_")]


@pytest.mark.parametrize("local", [True, False])
def test_what_trying_again_would_not_mend_is_tried_once(two: Cluster, local: bool, tmp_path: Path) -> None:
    executor = InProcess() if local else two
    executor.submit("x", refuse, Job(str(tmp_path), "photo"), trains=True)
    outcome = executor.next()
    assert isinstance(outcome.error, DatasetError)
    assert str(outcome.error) == "photo cannot be used"
    assert starts(tmp_path) == 1


def test_a_worker_that_is_killed_costs_its_task_only(two: Cluster, tmp_path: Path) -> None:
    two.submit("victim", leave_mark, Job(str(tmp_path), "victim", 3.0), trains=True)
    two.submit("other", leave_mark, Job(str(tmp_path), "other", 3.0), trains=True)
    deadline = time.monotonic() + 30
    while starts(tmp_path) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int(next(tmp_path.glob("victim-*.start")).name.split("-")[1])
    os.kill(pid, signal.SIGKILL)
    outcomes = {o.key: o for o in (two.next(), two.next())}
    assert outcomes["victim"].result is not None
    assert starts(tmp_path, "victim") == 2
    assert starts(tmp_path, "other") == 1


def test_a_task_that_kills_every_worker_is_given_up(two: Cluster, tmp_path: Path) -> None:
    two.submit("L1/0-0-0", die, Job(str(tmp_path)), trains=True)
    error = two.next().error
    assert isinstance(error, TrainingError)
    assert "L1/0-0-0" in str(error)
    assert "memory" in str(error)


def test_a_request_that_no_worker_meets_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(BudgetError, match=r"GPU 3.*none of the 1 workers.*TRAIN 1"):
        open_executor(Workplace(workers=1, requests={"GPU": 3.0}))
    assert time.monotonic() - started < 30
    with pytest.raises(BudgetError, match="--workers 0"):
        open_executor(Workplace(requests={"GPU": 1.0}))


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.pipelines.cluster._CONNECT_SECONDS", 1)
    with pytest.raises(SettingsError, match=r"--scheduler tcp://127.0.0.1:9"):
        open_executor(Workplace(scheduler="tcp://127.0.0.1:9"))


def test_the_cores_are_divided_among_local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert Workplace(workers=2).threads_per_task == 4
    assert Workplace(workers=20).threads_per_task == 1
    assert Workplace(workers=2, threads=3).threads_per_task == 3
    assert Workplace().threads_per_task is None


# --- a running cluster, and one that goes away -----------------------------------------------------------------------


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]]:
    """A scheduler and a worker with one GPU, as other people would start them."""
    file = tmp_path / "scheduler.json"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    python = [sys.executable, "-m"]
    command = [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
               "--scheduler-file", str(file)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    process = subprocess.Popen(command, env=environment, **quiet)
    worker = subprocess.Popen(
        [*python, "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "2", "--no-dashboard",
         "--resources", "GPU=1", "--host", "127.0.0.1", "--local-directory", str(tmp_path)],
        env=environment, **quiet,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    try:
        yield json.loads(file.read_text())["address"], process, [worker]
    finally:
        for each in (worker, process):
            each.kill()
            each.wait()


def test_a_running_cluster_gives_its_gpus_one_task_each_until_it_goes_away(
    scheduler: tuple[str, subprocess.Popen[bytes], list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, process, _ = scheduler
    with open_executor(Workplace(scheduler=address)) as executor:
        assert executor.capacity == 1
        for k in range(2):
            executor.submit(f"t{k}", leave_mark, Job(str(tmp_path), f"t{k}", 0.3), trains=True)
        assert [executor.next().result[1] for _ in range(2)] == [1, 1]
        with pytest.raises(BudgetError, match=r"GPU 2.*GPU 1"):
            open_executor(Workplace(scheduler=address, requests={"GPU": 2.0}))
        executor.submit("lost", leave_mark, Job(str(tmp_path), "lost", 60.0), trains=True)
        process.kill()
        with pytest.raises(TrainingError, match=rf"{address}.*the connection was lost.*same command"):
            executor.next()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, AnyArray]]:
    """A scene with its seed stage behind it, and what training in this process makes of it."""
    folder = tmp_path_factory.mktemp("cluster")
    seeded = build_scene(write_city(folder / "city"), folder / "seeded.zarr", SETTINGS)
    train(seeded, threads=1, stop=lambda: True)
    done = copy_scene(seeded, folder / "done.zarr")
    train(done, threads=1)
    return seeded, learned(done)


def test_workers_train_to_the_same_bits(scenes: tuple[str, dict[str, AnyArray]], tmp_path: Path) -> None:
    scene = copy_scene(scenes[0], tmp_path / "scene.zarr")
    shown: set[str] = set()
    summary = train(scene, place=Workplace(workers=2, threads=1), progress=lambda name, *_: shown.add(name))
    assert summary.failed == ()
    assert summary.remaining == 0
    assert shown == {report.treelet for report in summary.reports}
    assert differences(learned(scene), scenes[1]) == []
    with SceneStore.open(scene) as store:
        assert not verify(store).damage


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_same_call_finishes(
    scenes: tuple[str, dict[str, AnyArray]], tmp_path: Path
) -> None:
    scene = copy_scene(scenes[0], tmp_path / "scene.zarr")
    code = (
        "from infnerf_tiles.pipelines.train import train\n"
        "from infnerf_tiles.pipelines.cluster import Workplace\n"
        "if __name__ == '__main__':\n"
        f"    train({scene!r}, place=Workplace(workers=2, threads=1))\n"
    )
    script = tmp_path / "drive.py"
    script.write_text(code)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], **quiet) as driver:
        deadline = time.monotonic() + 120
        while not list((Path(scene) / "journal").glob("L*")) and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.02)
        workers = _children(driver.pid)
        driver.kill()
    assert workers
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in workers if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    train(scene, threads=1)
    assert differences(learned(scene), scenes[1]) == []


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(text) for text in listed.stdout.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
