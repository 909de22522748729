"""Random numbers from a key and a counter alone: the same on every device, with no state that a capture must carry."""

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # the odd number next to 2^64 / golden ratio, as int64


def key_of(seed: tuple[int, ...], step: int) -> int:
    """int64 key of a step of the training with that seed."""
    word = np.random.SeedSequence((*seed, step)).generate_state(1, np.uint64)
    return int(word.astype(np.int64)[0])


def counters(rows: int, count: int, device: torch.device, *, behind: int = 0) -> Tensor:
    """int64 [rows, count]: what `uniforms` mixes with a key, other ones than the first `behind`. Made once."""
    return torch.arange(behind + 1, behind + rows * count + 1, device=device).view(rows, count) * _GOLDEN


def uniforms(key: Tensor, counter: Tensor) -> Tensor:
    """Uniform float64 in [0, 1), one per counter, of a key int64 [1] (splitmix64, Steele et al. 2014)."""
    z = counter + key
    # an arithmetic shift with its sign bits taken off again: torch has no logical one for int64
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -7723592293110705685
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
