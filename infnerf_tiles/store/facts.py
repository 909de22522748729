"""Facts about a scene, for `info`."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infnerf_tiles.geometry.node_id import key_levels
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.index import NodeState, TreeletState
from infnerf_tiles.store.scene_store import SceneStore


@dataclass(frozen=True, kw_only=True)
class LevelFacts:
    """Nodes of one level. gsd: edge of its cells, world units."""

    level: int
    gsd: float
    nodes: int
    trained_nodes: int


@dataclass(frozen=True, kw_only=True)
class SceneFacts:
    """What is inside a scene. bytes, files: of the whole store, None where it cannot be listed (plain HTTP)."""

    scene: str
    format_version: int
    generation: int
    nodes: int
    trained_nodes: int
    levels: tuple[LevelFacts, ...]
    treelets: int
    trained_treelets: int
    failed_treelets: int
    bytes: int | None
    files: int | None
    row_bytes: int
    base_bytes: int
    occupancy_bytes: int
    georeference: dict[str, Any] | None
    dataset: str
    created: str
    package_version: str

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return asdict(self)


def info(store: SceneStore) -> SceneFacts:
    """Count what is in the current generation and how much room the store takes.

    DamagedStoreError if the index cannot be read.
    """
    index, header = store.read_index(), store.header
    levels = key_levels(index.keys)
    trained = index.states == NodeState.TRAINED
    num_bytes, num_files = stored_size(store.data)
    return SceneFacts(
        scene=store.name,
        format_version=store.root.to_json()["format_version"],
        generation=store.generation,
        nodes=index.num_nodes,
        trained_nodes=int(trained.sum()),
        levels=tuple(
            LevelFacts(
                level=int(level),
                gsd=header.root.node_edge(int(level)) / header.cells,
                nodes=int((levels == level).sum()),
                trained_nodes=int((trained & (levels == level)).sum()),
            )
            for level in np.unique(levels)
        ),
        treelets=index.num_treelets,
        trained_treelets=int((index.treelet_states == TreeletState.TRAINED).sum()),
        failed_treelets=int((index.treelet_states == TreeletState.FAILED).sum()),
        bytes=num_bytes,
        files=num_files,
        row_bytes=header.rows["params"].row_bytes,
        base_bytes=header.rows["base"].row_bytes,
        occupancy_bytes=header.occupancy_bytes,
        georeference=None if header.georeference is None else dict(header.georeference),
        dataset=header.dataset,
        created=header.created,
        package_version=header.package_version,
    )


def stored_size(data: GuardedStore) -> tuple[int | None, int | None]:
    """(bytes, files) of everything in the store; (None, None) if it cannot be listed."""
    if data.local_root is not None:
        sizes = [
            os.lstat(os.path.join(folder, name)).st_size
            for folder, _, names in os.walk(data.local_root)
            for name in names
        ]
        return sum(sizes), len(sizes)
    if not data.supports_listing:
        return None, None
    keys = data.keys()
    return sum(data.size(key) for key in keys), len(keys)
