"""Timing on either kind of device, and the table of results."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing timed, or the reason why it was not."""

    name: str
    seconds: float | None
    note: str = ""


@dataclass(kw_only=True)
class Result:
    """Our code and its baselines on the same work."""

    bench: str
    items: float
    """How many of `unit` one run handles."""
    unit: str
    ours: Case
    baselines: list[Case] = field(default_factory=list)

    def add(self, name: str, seconds: float | None, note: str = "") -> None:
        self.baselines.append(Case(name=name, seconds=seconds, note=note))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """What a benchmark needs to know: where it runs and how long it may take."""

    def __init__(self, device: torch.device, *, quick: bool):
        self.device, self.quick = device, quick

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def time(
        self, run: Callable[[], object], *, prepare: Callable[[], object] | None = None, at_most: float = 3.0
    ) -> float:
        """Median seconds of `run` after warm-up, each time after an untimed `prepare`; about `at_most` seconds long."""
        if self.quick:
            at_most = min(at_most, 0.5)
        for _ in range(3 if self.on_gpu else 1):
            if prepare is not None:
                prepare()
            run()
        self.sync()
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 3 or (len(times) < 50 and time.perf_counter() - begin < at_most):
            if prepare is not None:
                prepare()
            times.append(self._once(run))
        return statistics.median(times)

    def _once(self, run: Callable[[], object]) -> float:
        if not self.on_gpu:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any] | str:
        """torch.compile of a function, or why there is none."""
        if self.quick:
            return "skipped: --quick"
        torch._dynamo.reset()
        return torch.compile(function)

    def copy_seconds(self, traffic: float) -> float:
        """Seconds of a device-to-device copy that reads and writes `traffic` bytes together."""
        source = torch.empty(max(1, int(traffic / 2)), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.time(lambda: target.copy_(source))


def attempt(run: Callable[[], float]) -> tuple[float | None, str]:
    """Seconds, or the reason why a baseline cannot run here."""
    try:
        return run(), ""
    except Exception as error:  # a baseline may fail in whatever way it likes
        return None, f"skipped: {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"


def table(results: list[Result]) -> str:
    """One line per case: time, throughput, and how many times longer it takes than ours."""
    rows = [("benchmark", "what", "ms", "M/s", "times ours", "")]
    for result in results:
        for case in (result.ours, *result.baselines):
            if case.seconds is None:
                rows.append((result.bench, case.name, "", "", "", case.note))
                continue
            ours = result.ours.seconds
            ratio = "" if case is result.ours or not ours else f"{case.seconds / ours:.2f}"
            rate = f"{result.items / case.seconds / 1e6:.3g} {result.unit}"
            rows.append((result.bench, case.name, f"{case.seconds * 1e3:.4g}", rate, ratio, case.note))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join("  ".join([*(row[k].ljust(widths[k]) for k in range(5)), row[5]]).rstrip() for row in rows)
