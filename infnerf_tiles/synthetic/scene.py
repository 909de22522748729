"""The synthetic city: exact geometry and colours for any number of blocks, built only where a ray looks."""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float32, Float64, Int32, Int64, UInt8, check_shape
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.kernels.cpu.threads import parallel_region
from infnerf_tiles.synthetic.layout import BLOCK_EDGE, Block, make_block
from infnerf_tiles.synthetic.raycast import CELL_EDGE, CELLS_PER_EDGE, Tables, cast_groups

_MAX_BLOCKS = 1 << 24  # 64 MB of block table
_CELLS = CELLS_PER_EDGE * CELLS_PER_EDGE


@dataclass(frozen=True, kw_only=True)
class Solids:
    """The solids of one block, for tests that need the truth: boxes float64 [n, 6], shape and material uint8 [n]."""

    boxes: Float64
    shape: UInt8
    material: UInt8


def block_bounds(blocks: tuple[int, int]) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1), metres, of a city of nx x ny blocks: block (0, 0) is centred on the origin.

    SettingsError for a count below 1 or too many blocks for one table.
    """
    nx, ny = blocks
    if nx < 1 or ny < 1 or nx * ny > _MAX_BLOCKS:
        raise SettingsError(f"blocks: expected nx, ny >= 1 and nx * ny <= {_MAX_BLOCKS}, got {nx} x {ny}")
    x, y = _first_block(blocks)
    return (
        (x - 0.5) * BLOCK_EDGE,
        (y - 0.5) * BLOCK_EDGE,
        (x - 0.5 + blocks[0]) * BLOCK_EDGE,
        (y - 0.5 + blocks[1]) * BLOCK_EDGE,
    )


def _first_block(blocks: tuple[int, int]) -> tuple[int, int]:
    return -(blocks[0] // 2), -(blocks[1] // 2)


class City:
    """A deterministic city of nx x ny blocks around the world's origin, countryside beyond.

    World metres, z up, ground at z = 0. Block content depends on the seed and the block alone, so that a larger city
    of the same seed contains the smaller one unchanged. Not safe for concurrent casts from several threads: each
    needs its own city.
    """

    def __init__(self, *, blocks: tuple[int, int], seed: int) -> None:
        nx, ny = blocks
        self.bounds = block_bounds(blocks)  # (x0, y0, x1, y1) of the built-up area, metres
        self.blocks = (nx, ny)
        self.seed = seed
        self._first = _first_block(blocks)
        self._num_built = 0
        self._num_solids = 0
        self._num_items = 0
        self._tables = Tables(
            slot=np.full((nx, ny), -1, dtype=np.int32),
            kind=np.zeros(16, dtype=np.uint8),
            cell_start=np.zeros((16, _CELLS + 1), dtype=np.int64),
            cell_top=np.zeros((16, _CELLS), dtype=np.float64),
            items=np.zeros(4096, dtype=np.int32),
            boxes=np.zeros((2048, 6), dtype=np.float64),
            shape=np.zeros(2048, dtype=np.uint8),
            material=np.zeros(2048, dtype=np.uint8),
            style=np.zeros(2048, dtype=np.int64),
            corner=np.array(self.bounds[:2]),
        )

    @classmethod
    def generate(cls, blocks: tuple[int, int], seed: int) -> "City":
        """A city of this many blocks. Costs nothing yet: blocks are made when a ray first passes over them."""
        return cls(blocks=blocks, seed=seed)

    @property
    def num_blocks_built(self) -> int:
        return self._num_built

    def solids(self) -> Solids:
        """Every solid of the city; builds all blocks, so only for small cities."""
        self._build(np.ones(self.blocks, dtype=np.uint8))
        n = self._num_solids
        tables = self._tables
        return Solids(boxes=tables.boxes[:n].copy(), shape=tables.shape[:n].copy(), material=tables.material[:n].copy())

    def cast(self, origins: Float64, directions: Float64) -> tuple[Float64, Float32]:
        """First surface along every ray and its colour.

        `origins`, `directions`: float64 [n, 3] world, directions of unit length, origins outside all solids and not
        below the ground. Returns t float64 [n] (distance in metres; inf for the sky) and rgb float32 [n, 3] display
        values in [0, 1].
        """
        check_shape("origins", origins, (None, 3))
        check_shape("directions", directions, (origins.shape[0], 3))
        return self._cast(origins, np.eye(3), directions, group=1, shaded=True)

    def distance(self, origins: Float64, directions: Float64) -> Float64:
        """Like `cast`, without the colours. `origins` may also be [1, 3], shared by all rays."""
        check_shape("directions", directions, (None, 3))
        check_shape("origins", origins, (origins.shape[0] if origins.shape[0] == 1 else directions.shape[0], 3))
        return self._cast(origins, np.eye(3), directions, group=1, shaded=False)[0]

    def mean_colours(self, camera_to_world: Float64, directions: Float64, group: int) -> Float32:
        """Mean display colour of every `group` consecutive rays of a camera: float32 [n / group, 3].

        `camera_to_world`: float64 [3, 4]; `directions`: float64 [n, 3], unit, camera frame.
        """
        check_shape("camera_to_world", camera_to_world, (3, 4))
        check_shape("directions", directions, (None, 3))
        if group < 1 or directions.shape[0] % group:
            raise ValueError(f"group: expected a divisor of {directions.shape[0]} rays, got {group}")
        return self._cast(camera_to_world[None, :, 3], camera_to_world[:, :3], directions, group=group, shaded=True)[1]

    def _cast(
        self, origins: Float64, rotation: Float64, directions: Float64, *, group: int, shaded: bool
    ) -> tuple[Float64, Float32]:
        origins = np.ascontiguousarray(origins, dtype=np.float64)
        directions = np.ascontiguousarray(directions, dtype=np.float64)
        rotation = np.ascontiguousarray(rotation, dtype=np.float64)
        num = directions.shape[0] // group
        t = np.full(num, np.nan)
        rgb = np.zeros((num if shaded else 0, 3), dtype=np.float32)
        wanted = np.zeros(self.blocks, dtype=np.uint8)
        while True:
            with parallel_region():
                incomplete = cast_groups(self._tables, origins, rotation, directions, group, shaded, t, rgb, wanted)
            if not incomplete:
                return t, rgb
            self._build(wanted)
            wanted[:] = 0

    def _build(self, wanted: UInt8) -> None:
        """Makes the wanted blocks that do not exist yet."""
        for bx, by in np.argwhere((wanted != 0) & (self._tables.slot < 0)):
            block = make_block(self.seed, int(bx) + self._first[0], int(by) + self._first[1])
            self._insert(int(bx), int(by), block)

    def _insert(self, bx: int, by: int, block: Block) -> None:
        corner = self._tables.corner + np.array([bx, by]) * BLOCK_EDGE
        starts, tops, items = _cells(block.boxes - np.tile([*corner, 0.0], 2))
        slot, first, begin = self._num_built, self._num_solids, self._num_items
        self._num_built += 1
        self._num_solids += len(block.boxes)
        self._num_items += len(items)
        tables = self._tables
        self._tables = tables = tables._replace(
            kind=_grown(tables.kind, self._num_built),
            cell_start=_grown(tables.cell_start, self._num_built),
            cell_top=_grown(tables.cell_top, self._num_built),
            items=_grown(tables.items, self._num_items),
            boxes=_grown(tables.boxes, self._num_solids),
            shape=_grown(tables.shape, self._num_solids),
            material=_grown(tables.material, self._num_solids),
            style=_grown(tables.style, self._num_solids),
        )
        tables.kind[slot] = block.kind
        tables.cell_start[slot] = starts + begin
        tables.cell_top[slot] = tops
        tables.items[begin : self._num_items] = items + first
        tables.boxes[first : self._num_solids] = block.boxes
        tables.shape[first : self._num_solids] = block.shape
        tables.material[first : self._num_solids] = block.material
        tables.style[first : self._num_solids] = block.style
        tables.slot[bx, by] = slot


def _cells(local: Float64) -> tuple[Int64, Float64, Int32]:
    """Sorts a block's solids (boxes in block coordinates) into its cells: starts, highest z, items (highest first)."""
    margin = 1e-6  # a solid that ends on a cell's border belongs to both sides
    low = np.clip(np.floor((local[:, :2] - margin) / CELL_EDGE), 0, CELLS_PER_EDGE - 1).astype(np.int64)
    high = np.clip(np.floor((local[:, 3:5] + margin) / CELL_EDGE), 0, CELLS_PER_EDGE - 1).astype(np.int64)
    y, x = np.divmod(np.arange(_CELLS), CELLS_PER_EDGE)
    falling = np.argsort(-local[:, 5], kind="stable")
    low, high = low[falling], high[falling]
    covers = (
        (low[:, 0] <= x[:, None]) & (x[:, None] <= high[:, 0]) & (low[:, 1] <= y[:, None]) & (y[:, None] <= high[:, 1])
    )
    cells, ranks = np.nonzero(covers)
    starts = np.searchsorted(cells, np.arange(_CELLS + 1)).astype(np.int64)
    tops = np.where(covers, local[falling, 5], -np.inf).max(axis=1, initial=-np.inf)
    return starts, tops, falling[ranks].astype(np.int32)


def _grown(array: AnyArray, rows: int) -> AnyArray:
    """The array with room for at least this many rows; doubles, so that growing costs amortised constant time."""
    if rows <= len(array):
        return array
    larger = np.zeros((max(rows, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
