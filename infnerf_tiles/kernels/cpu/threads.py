"""Thread count of numba and torch, set in one place, and a guard for numba's thread-unsafe fallback layer."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_LOCK = threading.RLock()
_layer_is_safe: bool | None = None


def set_threads(count: int | None = None) -> int:
    """Make torch and numba use `count` threads (all cores if None) and return the number.

    dask's nanny sets OMP_NUM_THREADS=1, so a task that wants more must call this itself.
    """
    wanted = count if count is not None else (os.cpu_count() or 1)
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    wanted = max(1, min(wanted, most))
    numba.set_num_threads(wanted)
    torch.set_num_threads(wanted)
    return wanted


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Let torch use one thread, in this thread, for a while: operations of microseconds are over before others wake."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def parallel_region() -> Iterator[None]:
    """Hold a lock around a parallel kernel unless numba's threading layer allows two callers at once.

    Without libgomp numba falls back to "workqueue", which ends the process when two threads enter parallel kernels.
    """
    global _layer_is_safe
    if _layer_is_safe:
        yield
        return
    with _LOCK:
        yield
        if _layer_is_safe is None:
            with contextlib.suppress(ValueError):
                layer = numba.threading_layer()  # type: ignore[attr-defined]
                _layer_is_safe = layer in ("omp", "tbb")
                if not _layer_is_safe:
                    warnings.warn(
                        f"numba uses its '{layer}' threading layer: kernels take turns; "
                        "install libgomp (Debian: libgomp1) for the fast one",
                        RuntimeWarning,
                        stacklevel=3,
                    )


@intrinsic
def _take(typingctx, counter):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.IntType(64)(1), "monotonic")

    return types.int64(counter), build


take: Any = _take
"""take(counter int64 [1]) -> counter[0]++ by one thread at a time: threads of a numba kernel take the next task when
they are done. For tasks whose results do not depend on who does them and when; numba alone deals a loop out beforehand.
"""
