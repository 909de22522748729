"""One renderer, and so one cache and one budget, for all visitors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from infnerf_tiles.errors import BudgetError
from infnerf_tiles.rendering.accounts import smallest_working_set
from infnerf_tiles.rendering.renderer import DeviceChoice, Renderer
from infnerf_tiles.rendering.scene import Scene

_BLOCK = 96  # pixels, on the CPU; visitors take turns block by block, and outdated pictures are given up between


class SharedRenderer:
    """A renderer whose budget can be changed while visitors draw with it."""

    def __init__(
        self, scene: Scene, memory_budget: int | None, threads: int | None, device: DeviceChoice | None = None
    ) -> None:
        """BudgetError and SettingsError as of `Renderer`."""
        self.scene = scene
        self.smallest = smallest_working_set(scene.index, scene.shape, scene.octree)
        self._threads = threads
        self._device = device
        self._renderer = self._new(memory_budget)
        self._users = 0
        self._changing = False
        self._condition = threading.Condition()

    @property
    def memory_budget(self) -> int:
        """Bytes that nodes may take at most."""
        return self._renderer.memory_budget

    @property
    def wanted_back(self) -> bool:
        """Whether those who draw should stop, because the budget is about to change."""
        return self._changing

    @contextmanager
    def use(self) -> Iterator[Renderer]:
        """The renderer, for the duration of the block."""
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            self._users += 1
            renderer = self._renderer
        try:
            yield renderer
        finally:
            with self._condition:
                self._users -= 1
                self._condition.notify_all()

    def resize(self, memory_budget: int) -> None:
        """Give the nodes another budget; what was resident is read again. BudgetError if it is too small."""
        if memory_budget < self.smallest:
            raise BudgetError(f"memory budget: expected at least {self.smallest} bytes, got {memory_budget}")
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            if memory_budget == self._renderer.memory_budget:
                return
            self._changing = True
            self._condition.wait_for(lambda: self._users == 0)
            try:
                self._renderer.close()  # first: two caches would be more than either budget
                self._renderer = self._new(memory_budget)
            finally:
                self._changing = False
                self._condition.notify_all()

    def close(self) -> None:
        """Wait for those who draw, then let the cache go."""
        with self._condition:
            self._changing = True
            self._condition.wait_for(lambda: self._users == 0)
            self._renderer.close()

    def _new(self, memory_budget: int | None) -> Renderer:
        return Renderer(self.scene, memory_budget, threads=self._threads, device=self._device, host_block=_BLOCK)
