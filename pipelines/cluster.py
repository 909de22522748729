"""Where tasks run: in this process one after the other, on local worker processes, or on any dask cluster.

Tasks are top-level functions of one frozen argument. They read and write the scene themselves; what comes back through
the graph is a few numbers.
"""

import heapq
import importlib.util
import itertools
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import dask
from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, WorkerPlugin, get_worker
from distributed.client import Future

from infnerf_tiles.errors import BudgetError, InfnerfError, SettingsError, TrainingError
from infnerf_tiles.process import release_memory

_log = logging.getLogger(__name__)

Progress = Callable[[str, float, float], None]
"""(treelet, share done, PSNR in dB) while a training runs."""
TaskFunction = Callable[[Any, Progress | None], Any]

GPU = "GPU"
"""dask resource of a worker process that owns a CUDA device."""
TRAIN = "TRAIN"
"""dask resource of a worker process that trains one treelet at a time; its other thread decodes photos meanwhile."""
_TOPIC = "infnerf-tiles-progress"
_REPORT_SECONDS = 0.5
_POLL_SECONDS = 0.2
_WAIT_FOR_WORKERS = 60.0
_CONNECT_SECONDS = 10
_ALLOWED_DEATHS = 3
_RETRIES = 1


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where to run tasks.

    workers: local worker processes; 0 runs everything in this process, one task after the other. scheduler: address of
    a running dask cluster ("tcp://host:8786"), which `workers` then has no say in. threads: processor threads per task;
    None divides the cores among the local workers. requests: dask resources that a worker must offer to be given a
    treelet, such as {"GPU": 1}; empty asks for one GPU where any worker has one.
    """

    workers: int = 0
    scheduler: str | None = None
    threads: int | None = None
    requests: Mapping[str, float] = field(default_factory=dict)

    @property
    def threads_per_task(self) -> int | None:
        """Threads that a task sets for torch and numba; None for all cores of its machine."""
        if self.threads is not None or self.scheduler is not None or self.workers < 1:
            return self.threads
        return max(1, (os.cpu_count() or 1) // self.workers)


def default_workers() -> int:
    """Worker processes where nobody says how many: one per GPU of several, else none."""
    gpus = _num_gpus()
    return gpus if gpus > 1 else 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended: with what it returned, or with an error that trying again would not mend."""

    key: str
    result: Any = None
    error: InfnerfError | None = None


class Executor(Protocol):
    """Runs tasks; a context manager."""

    dashboard: str | None
    """Where a browser can watch, if anywhere."""

    @property
    def capacity(self) -> int:
        """Trainings that can run at once."""

    def submit(self, key: str, function: TaskFunction, task: Any, *, trains: bool, priority: int = 0) -> None:
        """Hand in a task. trains: whether it asks for the resources of a training. A higher priority goes first."""

    def next(self) -> Outcome:
        """Wait for the next task to end. TrainingError if the cluster is gone."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_executor(place: Workplace, progress: Progress | None = None) -> Executor:
    """Start or join what `place` names.

    SettingsError for a scheduler that cannot be reached, BudgetError if no worker offers what trainings ask for.
    """
    if place.scheduler is None and place.workers < 1:
        if place.requests:
            asked = _numbers(place.requests)
            raise BudgetError(
                f"trainings ask for {asked} on one worker, but there are no workers (--workers 0); start local ones "
                "with --workers, or join a cluster with --scheduler"
            )
        return InProcess(progress)
    return Cluster(place, progress)


class InProcess:
    """Runs each task when its outcome is asked for."""

    dashboard: str | None = None
    capacity = 1

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._waiting: list[tuple[int, int, str, TaskFunction, Any]] = []
        self._count = itertools.count()

    def submit(self, key: str, function: TaskFunction, task: Any, *, trains: bool, priority: int = 0) -> None:
        """See Executor."""
        del trains
        heapq.heappush(self._waiting, (-priority, next(self._count), key, function, task))

    def next(self) -> Outcome:
        """See Executor."""
        _, _, key, function, task = heapq.heappop(self._waiting)
        try:
            return Outcome(key=key, result=function(task, self._progress))
        except InfnerfError as error:
            return Outcome(key=key, error=error)
        finally:
            release_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()


class Cluster:
    """Runs tasks on dask workers: processes of its own, one per GPU first, or those of a running scheduler."""

    def __init__(self, place: Workplace, progress: Progress | None = None) -> None:
        self._place, self._progress = place, progress
        self._local = _start_local(place.workers) if place.scheduler is None else None
        self._futures: dict[str, Future] = {}
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        try:
            self._client = self._connect()
            self._needs = self._choose_needs()
        except BaseException:
            if self._local is not None:
                self._local.close()
            raise
        self._client.register_plugin(_Setup(), name="infnerf-tiles")
        self._client.forward_logging("infnerf_tiles", level=logging.INFO)
        if progress is not None:
            self._client.subscribe_topic(_TOPIC, self._on_event)
        self.dashboard: str | None = self._client.dashboard_link if _has_dashboard() else None

    @property
    def capacity(self) -> int:
        """See Executor."""
        return max(1, sum(_meets(offer, self._needs) for offer in self._offers().values()))

    def submit(self, key: str, function: TaskFunction, task: Any, *, trains: bool, priority: int = 0) -> None:
        """See Executor. BudgetError if no worker offers what a training asks for."""
        if trains:
            self._check_needs()
        future = self._client.submit(
            _run, function, task, key=f"{key}-{time.monotonic_ns():x}", pure=False, retries=_RETRIES,
            resources=self._needs if trains else None, priority=priority,
        )  # fmt: skip
        self._futures[key] = future
        future.add_done_callback(lambda _: self._done.put(key))

    def next(self) -> Outcome:
        """See Executor."""
        while True:
            with suppress(queue.Empty):
                key = self._done.get(timeout=_POLL_SECONDS)
                return self._outcome(key, self._futures.pop(key))
            if self._client.status != "running":
                raise self._gone()

    def _outcome(self, key: str, future: Future) -> Outcome:
        if future.status in ("cancelled", "lost"):
            raise self._gone()
        try:
            found = future.result(timeout=_CONNECT_SECONDS)
        except KilledWorker:
            return Outcome(
                key=key,
                error=TrainingError(
                    f"treelet {key}: its worker process died {_ALLOWED_DEATHS + 1} times; if the system killed it for "
                    "its memory, use fewer --workers or a smaller octree.treelet_height. The same command tries again"
                ),
            )
        except RuntimeError as error:
            if "deserialization" not in str(error):
                raise
            raise TrainingError(
                f"scheduler {self._place.scheduler}: expected one that can read tasks of infnerf-tiles, got another "
                "environment; install the same versions where the scheduler and its workers run"
            ) from error
        finally:
            future.release()
        return Outcome(key=key, error=found) if isinstance(found, InfnerfError) else Outcome(key=key, result=found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._futures.clear()
        with suppress(Exception):
            self._client.close(timeout=_CONNECT_SECONDS)
        if self._local is not None:
            self._local.close(timeout=_CONNECT_SECONDS)

    def _connect(self) -> Client:
        if self._local is not None:
            return Client(self._local)
        address = self._place.scheduler
        try:
            return Client(address, timeout=_CONNECT_SECONDS, name="infnerf-tiles")
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"--scheduler {address}: expected a running dask scheduler, got: {_first_line(error)}; start one with "
                "'dask scheduler', or leave the option out to use this machine"
            ) from error

    def _gone(self) -> TrainingError:
        where = self._place.scheduler or "this machine's own"
        return TrainingError(
            f"scheduler {where}: the connection was lost while {len(self._futures) or 'some'} tasks were under way; "
            "what is committed is kept. Run the same command again when it is back"
        )

    def _offers(self) -> dict[str, dict[str, float]]:
        """Resources of every worker, by its address."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {address: dict(worker.get("resources") or {}) for address, worker in workers.items()}

    def _choose_needs(self) -> dict[str, float]:
        deadline = time.monotonic() + _WAIT_FOR_WORKERS
        while not (offers := self._offers()) and time.monotonic() < deadline:
            _log.warning("scheduler %s: it has no workers yet; waiting for one", self._place.scheduler)
            with suppress(Exception):
                self._client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        known = {name for offer in offers.values() for name, amount in offer.items() if amount >= 1}
        needs = {name: 1.0 for name in (GPU, TRAIN) if name in known} | dict(self._place.requests)
        self._needs = needs
        self._check_needs()
        return needs

    def _check_needs(self) -> None:
        """BudgetError if no worker can ever run a training: dask would wait for one without a word."""
        offers = self._offers()
        if any(_meets(offer, self._needs) for offer in offers.values()):
            return
        has = "; ".join(f"{address} offers {_numbers(offer)}" for address, offer in list(offers.items())[:4])
        raise BudgetError(
            f"trainings ask for {_numbers(self._needs)} on one worker, but none of the {len(offers)} workers has that "
            f"({has or 'none is running'}); start workers with --resources, or ask for less"
        )

    def _on_event(self, event: tuple[float, Any]) -> None:
        with suppress(Exception):  # a report that came too late must not end dask's own loop
            name, share, psnr = event[1]
            if self._progress is not None:
                self._progress(name, share, psnr)


def _start_local(workers: int) -> SpecCluster:
    """A scheduler in this process and worker processes that die with it; the first ones own a GPU each."""
    gpus = _num_gpus()
    spec = {}
    for i in range(workers):
        env, resources = {}, {TRAIN: 1.0}
        if gpus:
            env = {"CUDA_VISIBLE_DEVICES": str(i) if i < gpus else ""}
            resources = {TRAIN: 1.0, GPU: 1.0} if i < gpus else {}
        # torch's and numpy's memory is nothing that dask could spill: its limits would only stop workers
        worker = {
            "nthreads": 2, "memory_limit": 0, "resources": resources, "env": env, "host": "127.0.0.1",
            "dashboard": False, "silence_logs": logging.ERROR,
        }  # fmt: skip
        spec[i] = {"cls": Nanny, "options": worker}
    # port 0: any that is free, so that two trainings can run side by side
    options = {"host": "127.0.0.1", "dashboard": _has_dashboard(), "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": options}
    config = {
        "distributed.scheduler.allowed-failures": _ALLOWED_DEATHS,
        # a task may hold the GIL for as long as a kernel compiles
        "distributed.scheduler.worker-ttl": None,
        # dask's own environment makes malloc give every large block back to the system: 9,000 page faults a step
        # instead of 150, which took half as long again
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1},
    }
    with dask.config.set(config):
        return SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.ERROR)


class _Setup(WorkerPlugin):
    """What every worker process does first."""

    def setup(self, worker: Any) -> None:
        """Leave Ctrl-C to the driver, which lets the treelets in hand finish."""
        del worker
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(function: TaskFunction, task: Any) -> Any:
    """On a worker: run a task and pass its progress on. Errors that trying again would not mend are results."""
    worker, last = get_worker(), 0.0

    def report(name: str, share: float, psnr: float) -> None:
        nonlocal last
        if share >= 1.0 or time.monotonic() - last >= _REPORT_SECONDS:
            last = time.monotonic()
            worker.log_event(_TOPIC, (name, share, psnr))

    try:
        return function(task, report)
    except InfnerfError as error:
        return error
    finally:
        release_memory()


def _meets(offer: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(offer.get(name, 0.0) >= amount for name, amount in needs.items())


def _numbers(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(amounts.items())) or "nothing"


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_dashboard() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
