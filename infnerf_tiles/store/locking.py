"""One writer at a time: an advisory lock on the folder of a local scene, released by the system if the process dies."""

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from infnerf_tiles.errors import StoreError

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_WAIT_SECONDS = 10.0


class WriterLock:
    """The right to change one scene's index, shared by all stores that this process has open on the folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._mutex = threading.RLock()
        self._descriptor: int | None = None
        self._holders = 0

    @contextlib.contextmanager
    def hold(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Keep other processes from writing. StoreError if one still does after `wait_seconds`."""
        with self._mutex:
            if self._holders == 0 and self._folder is not None:
                self._descriptor = _acquire(self._folder, wait_seconds)
            self._holders += 1
        try:
            yield
        finally:
            with self._mutex:
                self._holders -= 1
                if self._holders == 0 and self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep other processes and other threads from writing, for the moment of one change."""
        with self.hold(_WAIT_SECONDS), self._mutex:
            yield


_locks: dict[Path, WriterLock] = {}
_registry = threading.Lock()


def lock_of(folder: Path | None) -> WriterLock:
    """The lock of a scene's folder; one of its own where there is no folder to lock."""
    if folder is None:
        return WriterLock(None)
    with _registry:
        return _locks.setdefault(folder.resolve(), WriterLock(folder.resolve()))


def _acquire(folder: Path, wait_seconds: float) -> int | None:
    if sys.platform == "win32":  # no lock there; a commit on top of another one is still refused
        return None
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(folder, os.O_RDONLY)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise StoreError(
                    f"scene {folder}: expected no other writer, but another process is changing it "
                    "(a running 'build', 'train' or 'gc'); wait until it has finished"
                ) from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                raise
            _log.warning("scene %s: this file system has no locks; run only one writer at a time", folder)
            return None
