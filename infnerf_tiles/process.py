"""Facts about the running process."""

import sys


def peak_memory() -> int:
    """Peak resident bytes of this process so far; 0 where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
