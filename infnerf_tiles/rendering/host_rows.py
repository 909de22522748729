"""The host tier: rows read ahead, while something else is being drawn, and kept until they are taken."""

import enum
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.errors import DamagedNodeError
from infnerf_tiles.rendering.accounts import ByteMeter
from infnerf_tiles.store.fetch import Fetch

Kind = Literal["node", "base"]
Item = tuple[Kind, int]
"""("node", row of the index's node table) or ("base", row of its treelet table)"""


class RowState(enum.Enum):
    """Where a row that was asked for stands. A row that is not held has no state."""

    READING = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()
    DROPPED = enum.auto()
    """nobody wants it any more; once its read has ended it is forgotten"""


_MOVES = {
    RowState.READING: {RowState.READY, RowState.FAILED, RowState.DROPPED},
    RowState.READY: {RowState.DROPPED},
    RowState.FAILED: {RowState.DROPPED},
    RowState.DROPPED: set(),
}


@dataclass
class _Row:
    cost: int
    state: RowState = RowState.READING
    fetch: Fetch = field(default_factory=Fetch)
    ended: threading.Event = field(default_factory=threading.Event)
    arrays: tuple[AnyArray, ...] | None = None
    error: Exception | None = None

    def move(self, state: RowState) -> None:
        if state not in _MOVES[self.state]:
            raise AssertionError(f"row: no way from {self.state} to {state}")
        self.state = state


class Taken(NamedTuple):
    """arrays: the row, None if it was not asked for or could not be read. waited: whether it was still on its way."""

    arrays: tuple[AnyArray, ...] | None
    waited: bool


class HostRows:
    """Reads wanted rows in the background, a few at a time, and never holds more than `byte_budget` bytes.

    A row costs its bytes, and twice as many while it is being read: what is stored, and what it decodes to. What nobody
    takes goes with the next request that does not name it; a read that is under way is called off then.
    """

    def __init__(
        self,
        read: Callable[[Item], tuple[AnyArray, ...]],
        num_bytes: Callable[[Item], int],
        byte_budget: int,
        meter: ByteMeter,
        threads: int = 2,
    ) -> None:
        self.byte_budget = byte_budget
        self._read = read
        self._bytes_of = num_bytes
        self._meter = meter
        self._threads = threads
        self._held: dict[Item, _Row] = {}
        self._queue: deque[Item] = deque()
        self._total = 0
        self._reading = 0
        self._closed = False
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are held or being read."""
        return self._total

    @property
    def num_reading(self) -> int:
        """Reads that are under way, those of rows that were dropped meanwhile included."""
        return self._reading

    @property
    def items(self) -> tuple[Item, ...]:
        """The rows that are held or being read."""
        with self._lock:
            return tuple(self._held)

    def request(self, items: Sequence[Item]) -> None:
        """Read these rows, in this order and as room comes free; forget all others."""
        with self._lock:
            wanted = set(items)
            for stale in [item for item in self._held if item not in wanted]:
                self._drop(stale)
            self._queue = deque(item for item in items if item not in self._held)
            self._start()

    def take(self, item: Item) -> Taken:
        """The row, no longer held here; waits if it is being read. DamagedNodeError if it is damaged."""
        with self._lock:
            row = self._held.get(item)
            if row is None:
                if self._queue and item in self._queue:
                    self._queue.remove(item)
                return Taken(None, False)
        waited = not row.ended.is_set()
        row.ended.wait()
        with self._lock:
            if self._held.get(item) is row:
                self._drop(item)
                self._start()
        if isinstance(row.error, DamagedNodeError):
            raise row.error
        return Taken(row.arrays, waited)  # whoever reads it next meets other errors himself, or not at all

    def close(self) -> None:
        """Forget everything and end the threads."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            for item in list(self._held):
                self._drop(item)
        self._pool.shutdown(wait=True)

    def _start(self) -> None:
        """Begin to read what stands first in the queue and has room."""
        while self._queue and self._reading < self._threads and not self._closed:
            item = self._queue[0]
            cost = 2 * self._bytes_of(item)
            if self._total + cost > self.byte_budget:
                return
            self._queue.popleft()
            row = self._held[item] = _Row(cost=cost)
            self._reading += 1
            self._charge(cost)
            self._pool.submit(self._run, item, row)

    def _run(self, item: Item, row: _Row) -> None:
        try:
            with row.fetch.active():
                row.arrays = self._read(item)
        except (Exception, CancelledError) as error:
            row.error = error if isinstance(error, Exception) else None
        with self._lock:
            self._reading -= 1
            if row.state is RowState.DROPPED:
                row.arrays = None
                self._charge(-row.cost)
            else:
                row.move(RowState.FAILED if row.arrays is None else RowState.READY)
                kept = 0 if row.arrays is None else row.cost // 2
                self._charge(kept - row.cost)
                row.cost = kept
            row.ended.set()
            self._start()

    def _drop(self, item: Item) -> None:
        row = self._held.pop(item)
        reading = row.state is RowState.READING
        row.move(RowState.DROPPED)
        if reading:
            row.fetch.cancel()  # its bytes are given back when the read has ended
        else:
            self._charge(-row.cost)

    def _charge(self, num_bytes: int) -> None:
        self._total += num_bytes
        self._meter.add(num_bytes)
