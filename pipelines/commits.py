"""When finished treelets become part of the scene: many at a time, since a commit writes the whole index.

A treelet's record is on disk before it is handed in here, and whoever goes on after a kill takes up the records that
were not committed. So waiting loses nothing; readers see what was trained a little later.
"""

import time
from collections.abc import Callable

from infnerf_tiles.pipelines.recovery import commit_records

from infnerf_tiles.store.scene_store import SceneStore

COMMIT_SECONDS = 30.0
"""Between commits while a band is trained."""
_MOST_SHARE = 0.05
"""Of the time, that commits may take: of a large index they are fewer."""


class Commits:
    """Finished treelets on their way into the index."""

    def __init__(self, store: SceneStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._waiting: list[str] = []
        self._due = clock() + COMMIT_SECONDS

    def add(self, treelet: str) -> None:
        """Hand in a treelet whose record is written; errors as `SceneStore.commit`."""
        self._waiting.append(treelet)
        if self._clock() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Commit all that wait."""
        if not self._waiting:
            return
        started = self._clock()
        waiting, self._waiting = self._waiting, []
        commit_records(self._store, waiting)
        now = self._clock()
        self._due = now + max(COMMIT_SECONDS, (now - started) / _MOST_SHARE)
