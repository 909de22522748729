"""Blocks of cells against a plain loop."""

import numpy as np
import pytest
import torch

from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels.blocks import log_blocks, occupied_blocks


@pytest.mark.parametrize("cells", [4, 8, 16, 32])
def test_a_block_is_set_where_any_of_its_cells_is(rng: np.random.Generator, cells: int) -> None:
    occupied = rng.random((5, cells, cells, cells)) < 0.5 / (cells // 2) ** 3
    occupied[0] = False
    occupied[1] = True
    bits = torch.from_numpy(np.packbits(occupied.reshape(5, -1), axis=1, bitorder="little"))
    edge = 1 << log_blocks(cells.bit_length() - 1)
    expected = np.zeros((5, edge, edge, edge), np.bool_)
    for slot, z, y, x in np.argwhere(occupied):
        expected[slot, z * edge // cells, y * edge // cells, x * edge // cells] = True
    got = occupied_blocks(bits, cells)
    assert got.shape == (5, FieldShape(cells=4 * cells, table_size=8, features=1).block_bytes)
    np.testing.assert_array_equal(got.numpy(), np.packbits(expected.reshape(5, -1), axis=1, bitorder="little"))


@pytest.mark.parametrize("log_cells", range(6))
def test_a_block_is_an_octant_at_most_and_a_cell_at_least(log_cells: int) -> None:
    assert min(log_cells, 1) <= log_blocks(log_cells) <= log_cells


def test_blocks_where_they_are_cells(rng: np.random.Generator) -> None:
    bits = torch.from_numpy(rng.integers(0, 256, (3, 1)).astype(np.uint8))
    blocks = occupied_blocks(bits, 2)
    assert torch.equal(blocks, bits)
    assert blocks.data_ptr() != bits.data_ptr()


def test_no_nodes() -> None:
    assert occupied_blocks(torch.zeros((0, 64), dtype=torch.uint8), 8).shape == (0, 1)
