"""Waiting for reads that somebody may call off."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from typing import Any

Abort = Callable[[], bool]
"""Says whether the caller wants to stop."""
_POLL_SECONDS = 0.05


class Aborted(Exception):
    """The caller asked to stop; nothing failed."""


def finish(jobs: Iterable[Future[Any]], abort: Abort | None) -> None:
    """Wait for reads; raises the first failure, or Aborted."""
    pending = set(jobs)
    while pending:
        done, pending = wait(pending, None if abort is None else _POLL_SECONDS, return_when=FIRST_EXCEPTION)
        for job in done:
            try:
                job.result()
            except CancelledError as error:
                raise Aborted from error
        if pending and abort is not None and abort():
            raise Aborted
