"""The root document: the header, the current generation, and how many slots have been handed out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infnerf_tiles.errors import DamagedStoreError, SceneNotFoundError, StoreFormatError
from infnerf_tiles.store.documents import asked_again, check_group, read_document
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.row_arrays import ROW_KINDS
from infnerf_tiles.store.schema import FORMAT_VERSION, MAX_SLOTS, MAX_TREELETS, SceneHeader

CONTAINERS = ("index", "journal", "scratch")
SMALL_GROUPS = ("decoder", "appearance", "background", "cameras")
KNOWN_NAMES = frozenset((*ROW_KINDS, *CONTAINERS, *SMALL_GROUPS, "pixels"))


@dataclass(frozen=True, kw_only=True)
class RootState:
    """What the root document says.

    generation: the committed index, 0 if none yet. previous_generation: the one before it, kept to fall back on.
    next_slot, next_treelet_slot: the lowest numbers never handed out; they only grow, so that no reader of an older
    generation can meet another node's row in a slot that it knows.
    """

    header: SceneHeader
    generation: int
    previous_generation: int
    next_slot: int
    next_treelet_slot: int

    def with_next_slots(self, next_slot: int, next_treelet_slot: int) -> "RootState":
        """The same with more slots handed out; ValueError if that is more than there can be."""
        if not self.next_slot <= next_slot <= MAX_SLOTS or not (
            self.next_treelet_slot <= next_treelet_slot <= MAX_TREELETS
        ):
            raise ValueError(
                f"slots: expected up to {MAX_SLOTS} nodes and {MAX_TREELETS} treelets, "
                f"got {next_slot} and {next_treelet_slot}"
            )
        return replace(self, next_slot=next_slot, next_treelet_slot=next_treelet_slot)

    def to_json(self) -> dict[str, Any]:
        """The root attributes."""
        return {
            "format_version": FORMAT_VERSION,
            "generation": self.generation,
            "previous_generation": self.previous_generation,
            "next_slot": self.next_slot,
            "next_treelet_slot": self.next_treelet_slot,
            **self.header.to_json(),
        }

    @classmethod
    def from_json(cls, attributes: Mapping[str, Any]) -> "RootState":
        """Inverse of `to_json`; DamagedStoreError or StoreFormatError."""
        header = SceneHeader.from_json(attributes)
        names = ("generation", "previous_generation", "next_slot", "next_treelet_slot")
        counters: dict[str, Any] = {name: attributes.get(name) for name in names}
        if not all(isinstance(value, int) and value >= 0 for value in counters.values()):
            raise DamagedStoreError(f"scene root: expected non-negative counters, got {counters}")
        root = cls(header=header, **counters)
        if root.next_slot > header.capacity or root.next_treelet_slot > header.treelet_capacity:
            raise DamagedStoreError(f"scene root: expected slots within the capacities, got {counters}")
        return root


def read_root(store: GuardedStore) -> RootState:
    """Read and check the root document.

    SceneNotFoundError if there is none, StoreFormatError if another format version (or another program) wrote it,
    DamagedStoreError if it fails its checksum.
    """
    return asked_again(store, lambda: _read_root(store))


def _read_root(store: GuardedStore) -> RootState:
    document = read_document(store, "")
    if document is None:
        raise SceneNotFoundError(f"no scene at {store.name}; make one with 'build'")
    attributes = document.get("attributes")
    version = attributes.get("format_version") if isinstance(attributes, dict) else None
    if version is None:
        raise StoreFormatError(f"scene {store.name}: expected a scene, got a Zarr store of another kind")
    if version != FORMAT_VERSION:
        raise StoreFormatError(
            f"scene {store.name}: expected format version {FORMAT_VERSION}, got {version}; "
            "open it with the version of infnerf-tiles that made it, or build it again"
        )
    return RootState.from_json(check_group(document, store, ""))
