"""Where a device's time goes, kernel by kernel."""

from collections.abc import Callable

import torch


def kernel_table(run: Callable[[], object], repeats: int, rows: int = 30) -> tuple[float, str]:
    """(share of the time in which kernels ran, a table of kernels by their time) of runs on a CUDA device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.setdefault(event.name, []).append((event.time_range.start, event.time_range.end))
    every = sorted(span for parts in spans.values() for span in parts)
    busy, reach = 0.0, every[0][0]
    for start, end in every:
        busy += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    whole = reach - every[0][0]
    totals = {name: sum(b - a for a, b in parts) for name, parts in spans.items()}
    lines = [f"{'us/run':>9} {'share':>6} {'calls':>6}  kernel"]
    for name in sorted(totals, key=lambda k: -totals[k])[:rows]:
        share, calls = totals[name] / whole, len(spans[name]) / repeats
        lines.append(f"{totals[name] / repeats:9.1f} {share:6.1%} {calls:6.1f}  {name[:100]}")
    lines.append(f"{busy / repeats:9.1f} us busy of {whole / repeats:.1f} us a run")
    return busy / whole, "\n".join(lines)
