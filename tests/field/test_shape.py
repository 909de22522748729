"""Sizes of a field."""

import pytest

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels.arena import dense_rows


def test_default_sizes_are_the_designs() -> None:
    shape = FieldShape(cells=128, table_size=2**16, features=8)
    assert (shape.base_cells, shape.occupancy_cells, shape.num_corrections) == (64, 32, 5)
    assert shape.row_length * 2 == 1_048_576  # one row of 1.05 MB in float16
    assert shape.base_length * 2 == pytest.approx(4.4e6, rel=0.01)
    assert shape.occupancy_bytes == 4096
    assert shape.node_bytes == 4 * shape.row_length + 4096
    assert shape.base_bytes == 4 * shape.base_length


@pytest.mark.parametrize(("cells", "grids"), [(16, 2), (32, 3), (64, 4)])
def test_corrections_go_down_to_four_cells(cells: int, grids: int) -> None:
    shape = FieldShape(cells=cells, table_size=64, features=4)
    assert shape.num_corrections == grids
    assert shape.base_cells >> (grids - 1) == 4
    assert shape.training_dense_rows == dense_rows(shape.base_cells, grids)
    assert shape.base_rows == dense_rows(shape.base_cells, 1)


@pytest.mark.parametrize(
    ("cells", "table_size", "features", "named"),
    [
        (48, 64, 8, "cells"),
        (8, 64, 8, "cells"),
        (16, 100, 8, "table_size"),
        (16, 4, 8, "table_size"),
        (16, 64, 0, "features"),
    ],
)
def test_sizes_that_cannot_work_are_refused(cells: int, table_size: int, features: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FieldShape(cells=cells, table_size=table_size, features=features)
