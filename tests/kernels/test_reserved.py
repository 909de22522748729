"""Room to grow into: zeros that take memory when they are written to."""

import pytest
import torch

from infnerf_tiles.kernels.arena import reserved
from infnerf_tiles.process import resident_memory


@pytest.mark.parametrize("shape", [(0, 8), (3, 5, 7), (1000,), (64, 4096, 8)])
def test_zeros_from_a_whole_cache_line_on(shape: tuple[int, ...]) -> None:
    room = reserved(*shape)
    assert room.shape == shape
    assert room.dtype == torch.float32
    assert room.is_contiguous()
    assert room.data_ptr() % 64 == 0 or not room.numel()
    assert not room.any()
    room += 1.0
    assert bool((room == 1.0).all())


@pytest.mark.skipif(not resident_memory(), reason="the platform does not tell")
def test_what_is_not_written_to_takes_no_memory() -> None:
    before = resident_memory()
    room = reserved(1 << 26)  # 256 MiB
    assert resident_memory() - before < 64 << 20
    room[: 1 << 25] = 1.0
    assert resident_memory() - before > 96 << 20
