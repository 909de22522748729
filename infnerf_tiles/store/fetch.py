"""Waiting for a store's coroutines, with the possibility to call the wait off from another thread."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self, TypeVar

from zarr.core.sync import _get_loop, sync

_Result = TypeVar("_Result")


class Fetch:
    """Reads that belong together. After `cancel` they, and all further ones, end with CancelledError at once.

    Reads of local files are never called off: they are over before it is worth it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Call it off; what is on its way is dropped, and its connection with it."""
        with self._lock:
            self._cancelled = True
            if self._running is not None:
                self._running.cancel()

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Make all reads of this thread part of this fetch, as long as the block runs."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """The coroutine's result; CancelledError if the fetch is called off before."""
        with self._lock:
            if self._cancelled:
                coroutine.close()
                raise CancelledError
            future = self._running = asyncio.run_coroutine_threadsafe(coroutine, _get_loop())
        try:
            result: _Result = future.result()
            return result
        finally:
            with self._lock:
                self._running = None


_CURRENT: ContextVar[Fetch | None] = ContextVar("fetch", default=None)


def wait_for(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run on Zarr's own event loop, where the clients of remote stores live, as part of the thread's fetch if any."""
    fetch = _CURRENT.get()
    return sync(coroutine) if fetch is None else fetch.run(coroutine)
