"""Which finished work is of the scene as it is now: made with its settings, from its photos."""

from functools import cached_property
from pathlib import Path

import numpy as np

from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.store.journal import JournalRecord
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.inputs import scene_inputs, scene_settings
from infnerf_tiles.training.tasks import inputs_fingerprint, settings_fingerprint


class Acceptance:
    """Judges records by what the scene holds; nothing is read before the first one."""

    def __init__(self, store: SceneStore) -> None:
        self._store = store

    def holds(self, record: JournalRecord) -> bool:
        """Whether the record's settings and photos are the scene's, or were accepted as good enough."""
        pairs = zip((record.settings_fingerprint, record.inputs_fingerprint), self._now, strict=True)
        return all(then == now or f"{then}:{now}" in self._accepted for then, now in pairs)

    @cached_property
    def _accepted(self) -> frozenset[str]:
        return frozenset(scene_inputs(self._store.header).accepted)

    @cached_property
    def _now(self) -> tuple[str, str]:
        store, settings = self._store, scene_settings(self._store.header)
        stored, files = store.read_cameras(), store.read_files()
        count = len(stored.names)
        photos = PosedPhotos(
            root=Path(),
            names=stored.names,
            paths=tuple(Path(name) for name in stored.names),
            mask_paths=(None,) * count,
            # as `in_scene_order` has them
            cameras=stored.cameras.subset(np.arange(count)),
            is_test=stored.is_test,
            points=None,
            rejected=(),
            georeference=None,
            downscale=settings.data.downscale,
            digests=None if files is None else files.digest,
        )
        return settings_fingerprint(settings), inputs_fingerprint(Context(store, photos, settings))
