"""Memory for resident rows: much address space, of which only the slots in use cost memory."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from infnerf_tiles.errors import BudgetError
from infnerf_tiles.units import format_bytes

PAGE = mmap.PAGESIZE


class SlotNumbers:
    """Numbers of `slots` equal pieces of some memory, handed out lowest first."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free: list[int] = []
        self._next = 0

    @property
    def num_free(self) -> int:
        """Slots that can still be taken."""
        return self.slots - self._next + len(self._free)

    def take(self) -> int:
        """A slot that is not in use; its content is undefined. IndexError if all are in use."""
        if self._free:
            return self._free.pop()
        if self._next >= self.slots:
            raise IndexError("all slots are in use")
        self._next += 1
        return self._next - 1

    def release(self, slot: int) -> None:
        """Take back a slot; its content is lost."""
        self._free.append(slot)


class SlotMemory(SlotNumbers):
    """`slots` equal pieces of `slot_bytes` bytes, handed out lowest first.

    A slot costs nothing until it is written to. `release` gives its pages back where the system can do that (it does
    on Linux and macOS, where the piece is whole pages); elsewhere they are kept for the slot's next use.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """BudgetError if the address space cannot be had."""
        super().__init__(slots)
        self.slot_bytes = slot_bytes
        self._map: mmap.mmap | None = None
        total = max(slots * slot_bytes, 1)
        try:
            if hasattr(mmap, "MAP_PRIVATE"):
                self._map = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._bytes = np.frombuffer(self._map, np.uint8)
            else:
                self._bytes = np.empty(total, np.uint8)
        except (OSError, MemoryError, OverflowError, ValueError) as error:
            raise BudgetError(
                f"memory budget: expected {format_bytes(total)} of address space for resident nodes, got: {error}; "
                "give a smaller memory budget"
            ) from error

    def array(self, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """All slots as one array [slots, ...] of that dtype; `shape` is a slot's, and fills it."""
        return self._bytes[: self.slots * self.slot_bytes].view(dtype).reshape(self.slots, *shape)

    def release(self, slot: int) -> None:
        """Take back a slot; its content is lost."""
        super().release(slot)
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            first = -(-slot * self.slot_bytes // PAGE) * PAGE
            last = (slot + 1) * self.slot_bytes // PAGE * PAGE
            if last > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
