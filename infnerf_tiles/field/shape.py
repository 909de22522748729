"""The sizes that fix every array of a field."""

from dataclasses import dataclass

from infnerf_tiles.kernels.arena import VERTEX_BLOCK, dense_grid_rows, dense_rows
from infnerf_tiles.kernels.blocks import log_blocks


@dataclass(frozen=True, kw_only=True)
class FieldShape:
    """Sizes of nodes and treelets, the same for the whole scene."""

    cells: int
    """N, cells per node edge; a power of two, at least 16."""
    table_size: int
    """T, rows of a node's table; a power of two, at least 8."""
    features: int
    """F, features per vertex."""

    def __post_init__(self) -> None:
        for name in ("cells", "table_size", "features"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")
        if self.cells < 16:
            raise ValueError(f"cells: expected at least 16, got {self.cells}")
        if self.table_size < VERTEX_BLOCK:
            raise ValueError(f"table_size: expected at least one vertex block of {VERTEX_BLOCK}, got {self.table_size}")

    @property
    def base_cells(self) -> int:
        """Cells per edge of a treelet's base grid."""
        return self.cells // 2

    @property
    def occupancy_cells(self) -> int:
        """Occupancy cells per node edge."""
        return self.cells // 4

    @property
    def row_length(self) -> int:
        """Values in a node's row, T * F."""
        return self.table_size * self.features

    @property
    def base_rows(self) -> int:
        """Rows of the base grid in the dense buffer."""
        return dense_grid_rows(self.base_cells)

    @property
    def base_length(self) -> int:
        """Values in a treelet's base."""
        return self.base_rows * self.features

    @property
    def occupancy_bytes(self) -> int:
        """Bytes of a node's occupancy bits."""
        return self.occupancy_cells**3 // 8

    @property
    def block_bytes(self) -> int:
        """Bytes of the bits of a node's blocks of cells."""
        return -(-(1 << 3 * log_blocks(self.occupancy_cells.bit_length() - 1)) // 8)

    @property
    def num_corrections(self) -> int:
        """Dense grids of a training treelet: base_cells, base_cells / 2, ... 4 cells."""
        return (self.base_cells // 4).bit_length()

    @property
    def training_dense_rows(self) -> int:
        """Rows of the dense grids of a training treelet."""
        return dense_rows(self.base_cells, self.num_corrections)

    @property
    def node_bytes(self) -> int:
        """Resident bytes of one node: float32 table and occupancy bits."""
        return 4 * self.row_length + self.occupancy_bytes

    @property
    def base_bytes(self) -> int:
        """Resident bytes of one treelet base in float32."""
        return 4 * self.base_length
