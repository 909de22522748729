"""What follows from a scene's photos alone and every task asks for: worked out once per process.

Kept for as long as the photos are, which `scene_photos` holds from task to task. Any number of threads may ask.
"""

import hashlib
import itertools
import threading
from weakref import WeakKeyDictionary

import numpy as np

from infnerf_tiles.arrays import Float64, Int64
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.geometry.node_id import MAX_LEVEL, NodeId, RootCube, morton
from infnerf_tiles.geometry.octree import inside_unit, unit_cells
from infnerf_tiles.store.documents import fingerprint

_lock = threading.Lock()
_kept: "WeakKeyDictionary[PosedPhotos, KeptFacts]" = WeakKeyDictionary()


class KeptFacts:
    """Of some photos; get them from `facts_of`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fingerprint: str | None = None
        self._sorted: tuple[RootCube, SortedPoints] | None = None

    def fingerprint(self, photos: PosedPhotos) -> str:
        """Of poses, intrinsics, photo names, sizes and files."""
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = _fingerprint(photos)
            return self._fingerprint

    def sorted_points(self, xyz: Float64, root: RootCube) -> "SortedPoints":
        """The photos' points by place; those of the scene asked for last are kept."""
        with self._lock:
            if self._sorted is None or self._sorted[0] != root:
                self._sorted = (root, SortedPoints(xyz, root))
            return self._sorted[1]


class SortedPoints:
    """Points in Morton order, in which a cube's are next to each other."""

    def __init__(self, xyz: Float64, root: RootCube) -> None:
        """xyz: float64[m, 3], world; those outside the root cube are in no cube."""
        unit = root.to_unit(xyz)
        rows = np.flatnonzero(inside_unit(unit)).astype(np.int32)
        codes = morton(unit_cells(unit[rows], MAX_LEVEL))
        order = np.argsort(codes, kind="stable")
        self._rows, self._codes = rows[order], codes[order]

    def within(self, cube: NodeId) -> Int64:
        """int64[k], ascending rows of the points in the cube."""
        shift = 3 * (MAX_LEVEL - cube.level)
        code = int(morton(np.array([[cube.x, cube.y, cube.z]], np.int64))[0])
        first, last = np.searchsorted(self._codes, [code << shift, (code + 1) << shift])
        return np.sort(self._rows[first:last]).astype(np.int64)

    def around(self, cube: NodeId) -> Int64:
        """int64[k], ascending rows of the points in the cube and the up to 26 cubes of its level around it."""
        spans = (range(max(c - 1, 0), min(c + 2, 1 << cube.level)) for c in (cube.x, cube.y, cube.z))
        found = [self.within(NodeId(cube.level, *cell)) for cell in itertools.product(*spans)]
        return np.sort(np.concatenate(found))


def facts_of(photos: PosedPhotos) -> KeptFacts:
    """What is known of these very photos in this process."""
    with _lock:
        found = _kept.get(photos)
        if found is None:
            found = _kept[photos] = KeptFacts()
        return found


def _fingerprint(photos: PosedPhotos) -> str:
    files = None if photos.digests is None else hashlib.sha256(photos.digests.tobytes()).hexdigest()
    return fingerprint(
        {
            **({} if files is None else {"files": files}),
            "names": list(photos.names),
            "test": [bool(t) for t in photos.is_test],
            "poses": np.round(photos.cameras.camera_to_world, 9).tolist(),
            "cameras": [[c.model, c.width, c.height, list(c.params)] for c in photos.cameras.cameras],
            "index": photos.cameras.camera_index.tolist(),
        }
    )
