"""`SceneStore`: a scene on disk (or anywhere a Zarr store reaches), opened, read, written and committed.

Any number of processes may write rows of slots that they were given. Slots are handed out and generations committed by
one writer at a time. What a reader sees changes only by the replacement of one document, the root's.
"""

import datetime
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np

from infnerf_tiles.arrays import AnyArray, Bool, Float16, UInt8
from infnerf_tiles.errors import DamagedNodeError, DamagedStoreError, StoreError
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.store import bundle
from infnerf_tiles.store.documents import DOCUMENT, document_key, group_document, plain_group_document
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import NO_SLOT, SceneIndex, generation_path, read_generation, write_generation
from infnerf_tiles.store.location import Location, open_location, sweep_partial_files
from infnerf_tiles.store.locking import lock_of
from infnerf_tiles.store.root import CONTAINERS, KNOWN_NAMES, SMALL_GROUPS, RootState, read_root
from infnerf_tiles.store.row_arrays import RowArrays, RowKind
from infnerf_tiles.store.schema import SceneHeader
from infnerf_tiles.store.stored_cameras import (
    StoredCameras,
    StoredFiles,
    cameras_from_bundle,
    cameras_to_bundle,
    files_from_bundle,
)

SmallGroup = Literal["decoder", "appearance", "background"]
_ADVICE = {
    "decoder": "every node depends on it: train the scene again from the seed stage ('train --redo L0/0-0-0')",
    "appearance": "fit it again with 'train'",
    "background": "train the scene again from the seed stage",
    "cameras": "build the scene again from its data set",
}


class SceneStore:
    """An open scene. Make one with `create` or `open`; use it as a context manager or `close` it."""

    def __init__(self, data: GuardedStore, root: RootState, *, writable: bool) -> None:
        self._data = data
        self._root = root
        self._writable = writable
        self._lock = lock_of(data.local_root if writable else None)
        self._rows = RowArrays(data, root.header)
        self._known: tuple[int, AnyArray, AnyArray] | None = None  # a generation and the slots that it names

    # --- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, location: Location, header: SceneHeader) -> Self:
        """Make an empty scene (generation 0, no nodes) in a new or empty folder, or in a Zarr store.

        StoreError if something else is there already.
        """
        data = open_location(location, "w")
        names = set(data.names(""))
        if DOCUMENT in names:
            raise StoreError(f"scene {data.name}: there is one already; choose another place or delete it first")
        if foreign := sorted(names - KNOWN_NAMES):
            raise StoreError(
                f"scene {data.name}: expected an empty place, found {', '.join(foreign[:5])}; choose another folder"
            )
        for leftover in names:  # of a `create` that was interrupted: without a root document it is no scene
            data.remove_folder(leftover)
        header = replace(
            header,
            created=header.created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            package_version=header.package_version or _package_version(),
        )
        RowArrays(data, header).write_metadata(header)
        for container in CONTAINERS:
            data.write_bytes(document_key(container), plain_group_document())
        root = RootState(header=header, generation=0, previous_generation=0, next_slot=0, next_treelet_slot=0)
        data.replace_durably(DOCUMENT, group_document(root.to_json()))
        return cls(data, root, writable=True)

    @classmethod
    def open(cls, location: Location, mode: Literal["r", "r+"] = "r", *, sweep: bool = True) -> Self:
        """Open a scene to read it ("r") or to change it ("r+"; with `sweep` also deletes old `.partial` leftovers).

        `location`: a folder, a .zip file ("r" only), a URL, or a Zarr store. SceneNotFoundError if there is no scene,
        StoreFormatError if another format version made it, DamagedStoreError if its root document is damaged,
        UnreachableError if a server fails, StoreError for "r+" on a packed copy.
        """
        data = open_location(location, mode)
        root = read_root(data)
        if mode == "r+" and root.header.shard_rows > 1:
            raise StoreError(f"scene {data.name}: a packed scene can be read but not changed; change the one it is of")
        if mode == "r+" and sweep:
            sweep_partial_files(data)
        return cls(data, root, writable=mode == "r+")

    def close(self) -> None:
        """Sync what was written and let the place go."""
        if self._writable:
            self._data.flush()
        self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Where the scene is, fit for messages."""
        return self._data.name

    @property
    def data(self) -> GuardedStore:
        """The bytes below, for the other modules of this package."""
        return self._data

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    @property
    def header(self) -> SceneHeader:
        """What is fixed since the scene was built, and the capacities last seen."""
        return self._root.header

    @property
    def root(self) -> RootState:
        """The root document as last seen."""
        return self._root

    @property
    def generation(self) -> int:
        """Number of the index generation last seen; 0 before the first commit."""
        return self._root.generation

    def check_built(self) -> None:
        """StoreError if nothing was ever committed: then whoever made the scene was interrupted, or is still at it."""
        if self.generation == 0:
            raise StoreError(
                f"scene {self.name}: expected a scene, got one whose 'build' was interrupted (or has not finished yet);"
                " build it again"
            )

    def refresh(self) -> None:
        """See what has been committed since."""
        self._root = read_root(self._data)

    # --- rows ---------------------------------------------------------------------------------------------------

    def write_node(self, slot: int, table: Float16, occupancy: UInt8) -> None:
        """Write one node's row and bits into a slot that `allocate` gave out.

        `table`: float16[T * F]. `occupancy`: uint8[B]. ValueError for another dtype or shape, StorageFullError if the
        disk is full. Nobody sees the node before a commit names the slot.
        """
        self.check_writable()
        self._rows.write("params", slot, table)
        self._rows.write("occupancy", slot, occupancy)

    def read_node(self, slot: int) -> Float16:
        """float16[T * F] of one node; DamagedNodeError if the row is missing or fails its checksum."""
        return self._rows.read("params", slot)

    def read_occupancy(self, slot: int) -> UInt8:
        """uint8[B] of one node; DamagedNodeError if the row is missing or fails its checksum."""
        return self._rows.read("occupancy", slot)

    def write_base(self, treelet_slot: int, base: Float16) -> None:
        """Write the base grid, float16[V, V, V, F] with V = base_cells + 1, of a slot from `allocate_treelets`."""
        self.check_writable()
        self._rows.write("base", treelet_slot, base)

    def read_base(self, treelet_slot: int) -> Float16:
        """float16[V, V, V, F] base grid; DamagedNodeError if it is missing or fails its checksum."""
        return self._rows.read("base", treelet_slot)

    @property
    def rows(self) -> RowArrays:
        """The row arrays, for the other modules of this package."""
        return self._rows

    def row_key(self, kind: RowKind, slot: int) -> str:
        """Key of a row's one object in the Zarr store."""
        return self._rows.chunk_key(kind, slot)

    # --- small groups -------------------------------------------------------------------------------------------

    def write_small(self, group: SmallGroup, arrays: Mapping[str, AnyArray]) -> None:
        """Replace a small group as a whole: plain numeric arrays by name."""
        self._write_group(group, arrays, {})

    def read_small(self, group: SmallGroup) -> dict[str, AnyArray]:
        """The arrays of a small group; StoreError if it was never written, DamagedStoreError if it is damaged."""
        return self.read_group(group).arrays

    def has_small(self, group: str) -> bool:
        """Whether the group (a small one, or "cameras") was ever written."""
        return self._data.has(document_key(_small_path(group)))

    def write_cameras(
        self, cameras: PosedCameras, names: tuple[str, ...], is_test: Bool, files: StoredFiles | None = None
    ) -> None:
        """Keep the cameras. `names`: photo names relative to the photo folder; `is_test`: bool[n]; `files`: marks of
        the photos' files, by which a photo that was changed is found out."""
        self._write_group("cameras", *cameras_to_bundle(cameras, names, is_test, files))

    def read_cameras(self) -> StoredCameras:
        """(cameras, names, is_test) as they were written."""
        return cameras_from_bundle(self.read_group("cameras"), self.name)

    def read_files(self) -> StoredFiles | None:
        """Marks of the photos' files when the scene was built, None if they were not kept."""
        return files_from_bundle(self.read_group("cameras"))

    def _write_group(self, group: str, arrays: Mapping[str, AnyArray], meta: Mapping[str, Any]) -> None:
        self.check_writable()
        bundle.write_bundle(self._data, _small_path(group), arrays, meta)

    def read_group(self, group: str) -> bundle.Bundle:
        """A small group with its facts; errors as `read_small`."""
        try:
            found = bundle.read_bundle(self._data, _small_path(group))
        except DamagedStoreError as error:
            raise DamagedStoreError(f"{error}; {_ADVICE[group]}") from error
        if found is None:
            raise StoreError(f"scene {self.name}: it has no {group} yet; {_ADVICE[group]}")
        return found

    def change_settings(self, settings: Mapping[str, Any]) -> None:
        """Replace the header's `settings` (JSON values), durably. Nothing else of a header may change."""
        with self._changing() as root:
            self._save(replace(root, header=replace(root.header, settings=dict(settings))))
            self._root = replace(self._root, header=replace(self._root.header, settings=dict(settings)))

    # --- the single writer --------------------------------------------------------------------------------------

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep every other process from allocating, committing and collecting garbage, for as long as work is in
        flight whose rows no generation names yet. StoreError if another process is at it."""
        self.check_writable()
        return self._lock.hold()

    def allocate(self, num_nodes: int) -> range:
        """Hand out slots that were never handed out before, durably; the arrays grow as needed."""
        with self._changing() as root:
            slots = range(root.next_slot, root.next_slot + num_nodes)
            self._save_slots(root.with_next_slots(slots.stop, root.next_treelet_slot))
            return slots

    def allocate_treelets(self, num_treelets: int) -> range:
        """As `allocate`, for rows of `base`."""
        with self._changing() as root:
            slots = range(root.next_treelet_slot, root.next_treelet_slot + num_treelets)
            self._save_slots(root.with_next_slots(root.next_slot, slots.stop))
            return slots

    def read_index(self) -> SceneIndex:
        """The newest committed index, checked; it is empty before the first commit.

        DamagedStoreError if a column is missing, damaged or contradicts the others.
        """
        while True:
            self.refresh()
            try:
                return self.read_generation(self._root.generation)
            except DamagedStoreError:
                if read_root(self._data).generation == self._root.generation:
                    raise  # otherwise it was replaced and cleared away while it was being read

    def read_generation(self, generation: int) -> SceneIndex:
        """The index of one generation, checked. Only the current one and the one before it are kept."""
        if generation == 0:
            return SceneIndex.planned(())
        index, _ = read_generation(self._data, generation)
        try:
            self._check_index(index, self._root)
        except ValueError as error:
            raise DamagedStoreError(
                f"scene {self.name}: index generation {generation} contradicts itself ({error}); run 'verify --repair'"
            ) from error
        self._known = (generation, index.slots.copy(), index.base_slots.copy())
        return index

    def commit(self, index: SceneIndex) -> int:
        """Make `index` what everybody sees, at once and durably; returns its generation.

        ValueError if the index contradicts itself; DamagedNodeError if it names a new slot that holds no row;
        StoreError if somebody else committed since this store last read the index; StorageFullError if the disk is
        full. After an error the former generation is still the current one.
        """
        with self._changing() as root:
            if root.generation != self._root.generation:
                raise StoreError(
                    f"scene {self.name}: expected generation {self._root.generation}, but {root.generation} has been "
                    "committed since; read the index again and repeat the change"
                )
            self._check_index(index, root)
            self._check_new_rows(index, root)
            taken = [int(name) for name in self._data.names("index") if name.isascii() and name.isdigit()]
            generation = max([root.generation, *taken]) + 1
            committed = replace(root, generation=generation, previous_generation=root.generation)
            write_generation(self._data, generation, index, committed.to_json())
            self._save(committed)
            self._root = committed
            self._known = (generation, index.slots.copy(), index.base_slots.copy())
            for old in taken:
                if old != root.generation:
                    self._data.remove_folder(generation_path(old))
            return generation

    @contextmanager
    def _changing(self) -> Iterator[RootState]:
        """The root document as it is on disk, while nobody else may change it."""
        self.check_writable()
        with self._lock.transaction():
            yield read_root(self._data)

    def _save_slots(self, root: RootState) -> None:
        header = self._rows.grow(root.next_slot, root.next_treelet_slot, root.header)
        root = replace(root, header=header)
        self._save(root)
        # Others' commits stay unseen until `refresh`, so that a commit on top of them is refused.
        seen = self._root
        self._root = replace(root, generation=seen.generation, previous_generation=seen.previous_generation)

    def _save(self, root: RootState) -> None:
        self._data.replace_durably(DOCUMENT, group_document(root.to_json()))

    def _check_index(self, index: SceneIndex, root: RootState) -> None:
        index.check(
            next_slot=root.next_slot,
            next_treelet_slot=root.next_treelet_slot,
            num_bands=len(root.header.band_levels),
            max_level=root.header.max_level,
        )

    def _check_new_rows(self, index: SceneIndex, root: RootState) -> None:
        """DamagedNodeError unless every slot that the current generation does not name yet holds a row."""
        former = self._former_slots(root)
        named: tuple[tuple[RowKind, AnyArray, AnyArray], ...] = (
            ("params", index.slots, former[0]),
            ("occupancy", index.slots, former[0]),
            ("base", index.base_slots, former[1]),
        )
        for kind, slots, known in named:
            for slot in np.setdiff1d(slots[slots != NO_SLOT], known):
                if not self._data.has(self.row_key(kind, int(slot))):
                    raise DamagedNodeError(
                        f"scene {self.name}: expected {kind} slot {slot} to be written before it is committed, "
                        "got none; train that treelet again"
                    )

    def _former_slots(self, root: RootState) -> tuple[AnyArray, AnyArray]:
        if self._known is not None and self._known[0] == root.generation:
            return self._known[1:]
        try:
            former = self.read_generation(root.generation)
        except DamagedStoreError:  # a repair replaces it: then everything is new
            former = SceneIndex.planned(())
        return former.slots, former.base_slots

    def check_writable(self) -> None:
        """StoreError if the scene was opened for reading."""
        if not self._writable:
            raise StoreError(f"scene {self.name}: it was opened for reading; open it with mode 'r+' to change it")


def _small_path(group: str) -> str:
    if group not in SMALL_GROUPS:
        raise ValueError(f"small group: expected one of {', '.join(SMALL_GROUPS)}, got {group!r}")
    return group


def _package_version() -> str:
    try:
        return importlib.metadata.version("infnerf-tiles")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
