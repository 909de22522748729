"""Facts about the running process, and how it holds memory."""

import ctypes
import platform
import sys
from pathlib import Path


def peak_memory() -> int:
    """Peak resident bytes of this process so far; 0 where the platform does not tell."""
    # what getrusage says begins with the peak of the process that started this one
    if found := _status("VmHWM:"):
        return found
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def hold_freed_memory(size: int = 1 << 28) -> bool:
    """Let the C library keep up to `size` freed bytes of its heap for what is allocated next; whether it agreed.

    A training step frees tens of megabytes of short-lived arrays. Given back to the system and taken again, page by
    page, they cost more than what is computed in them. glibc only.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at the most that all versions take
    return bool(mallopt(-1, size)) and bool(mallopt(-3, 1 << 25))


def resident_memory() -> int:
    """Resident bytes of this process now; 0 where the platform does not tell."""
    return _status("VmRSS:")


def release_memory() -> None:
    """Give what is free on the heap back to the system, where the C library can: a task's leftovers would add up with
    what the next task of another kind takes."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _status(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
