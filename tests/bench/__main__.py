"""Command line of the benchmarks."""

import argparse
import json
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import infnerf_tiles  # before torch: it sets how threads wait  # noqa: F401  # isort: skip
import torch

from tests.bench import kernel_benches, scene_benches, step_bench
from tests.bench.measure import Bench, Result, table

BENCHES: dict[str, Callable[[Bench], list[Result]]] = {
    "encode": kernel_benches.encode_chain,
    "encode_field": kernel_benches.encode_field,
    "march": kernel_benches.march,
    "decode": kernel_benches.decode,
    "composite": kernel_benches.composite,
    "adam": kernel_benches.adam,
    "step": step_bench.training_step,
    "render": scene_benches.rendering,
    "load": scene_benches.node_load,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="run this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="smaller, shorter, nothing compiled")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    args = parser.parse_args()
    bench = Bench(torch.device(args.device), quick=args.quick)
    hardware = describe(bench)
    results: list[Result] = []
    failed = False
    for name in args.only or BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)  # noqa: T201
        try:
            results += BENCHES[name](bench)
        except Exception:  # one broken benchmark must not cost the others
            failed = True
            traceback.print_exc()
        if bench.on_gpu:
            torch.cuda.empty_cache()
    print(hardware)  # noqa: T201
    print(table(results))  # noqa: T201
    if args.json is not None:
        report = {"hardware": hardware, "results": [r.to_json() for r in results]}
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    sys.exit(1 if failed else 0)


def describe(bench: Bench) -> str:
    """The hardware and the versions that the figures belong to."""
    what = platform.processor() or platform.machine()
    if bench.on_gpu:
        what = torch.cuda.get_device_name(bench.device)
    return f"{what}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
