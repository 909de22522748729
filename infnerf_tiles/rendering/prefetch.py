"""Rows read ahead, while something else is being drawn."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Literal

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError

Kind = Literal["node", "base"]
Item = tuple[Kind, int]
"""("node", row of the index's node table) or ("base", row of its treelet table)"""


class Prefetcher:
    """Reads wanted rows in the background and keeps them, never more than `byte_budget` bytes, until they are taken.

    A row that nobody takes goes with the next request that does not name it.
    """

    def __init__(
        self,
        read: Callable[[Item], tuple[AnyArray, ...]],
        num_bytes: Callable[[Item], int],
        byte_budget: int,
        threads: int = 2,
    ) -> None:
        self.byte_budget = byte_budget
        self._read = read
        self._bytes_of = num_bytes
        self._held: dict[Item, Future[tuple[AnyArray, ...]]] = {}
        self._total = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are held or being read."""
        return self._total

    def request(self, items: Sequence[Item]) -> None:
        """Read these rows, in this order and as many as fit; forget all others."""
        wanted = set(items)
        with self._lock:
            for stale in [item for item in self._held if item not in wanted]:
                if self._held[stale].cancel() or self._held[stale].done():
                    self._forget(stale)
            for item in items:
                cost = self._bytes_of(item)
                if item in self._held:
                    continue
                if self._total + cost > self.byte_budget:
                    break
                self._held[item] = self._pool.submit(self._read, item)
                self._total += cost

    def take(self, item: Item) -> tuple[AnyArray, ...] | None:
        """The row, if it was requested and can be read, and no longer held; DamagedNodeError if it is damaged."""
        with self._lock:
            future = self._held.get(item)
            if future is None:
                return None
        try:
            return future.result()
        except DamagedNodeError:
            raise
        except (Exception, CancelledError):
            return None  # whoever reads it next meets the error himself, or not at all
        finally:
            with self._lock:
                if self._held.get(item) is future:
                    self._forget(item)

    def close(self) -> None:
        """Forget everything and end the threads."""
        with self._lock:
            for future in self._held.values():
                future.cancel()
            self._held.clear()
            self._total = 0
        self._pool.shutdown(wait=True)

    def _forget(self, item: Item) -> None:
        del self._held[item]
        self._total -= self._bytes_of(item)
