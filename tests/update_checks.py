"""What the Triton kernels that follow the backward pass must do, against their torch twins: evidence and updates.

A subclass says where (`device`) and how large (`scale`).
"""

from typing import ClassVar

import numpy as np
import pytest
import torch
from arenas import random_arena, random_octree, random_points
from cuda_checks import MARCHED, moved
from torch import Tensor

from infnerf_tiles.kernels import cuda, reference
from infnerf_tiles.kernels.arena import adam_scalars


class NoteChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    @pytest.mark.parametrize("counted", [False, True])
    def test_evidence_sample_by_sample(self, rng: np.random.Generator, counted: bool) -> None:
        arena = random_arena(rng, random_octree(rng, 3), (0, 2), shape=MARCHED)
        num, slots, edge = 150 * self.scale, arena.level.shape[0] - 2, MARCHED.occupancy_cells
        position, slot, _ = random_points(rng, arena, num)
        wanted = (arena.level[slot.long()] + torch.from_numpy(rng.uniform(-1.0, 1.5, num))).float()
        weight = torch.from_numpy(np.maximum(rng.uniform(-0.3, 0.3, num), 0.0)).float()
        ray, photo = torch.from_numpy(rng.integers(0, 9, num)).int(), torch.from_numpy(rng.integers(0, 200, 9))
        used = num - 20 if counted else num
        want = {
            "seen": torch.full((slots,), -1.0), "wanting": torch.zeros((slots, 8), dtype=torch.int32),
            "photos": torch.zeros((slots, 8), dtype=torch.int64),
            "reached": torch.full((slots, edge**3), 3, dtype=torch.int32),
        }  # fmt: skip
        got = {name: t.to(self.device) for name, t in want.items()}
        columns = [c.to(self.device) for c in (slot, wanted, weight, position, photo, ray)]
        now = torch.tensor([7], dtype=torch.int32, device=self.device)
        count = torch.tensor([used], dtype=torch.int32, device=self.device) if counted else None
        off, on = (torch.tensor([flag], dtype=torch.uint8, device=self.device) for flag in (0, 1))
        for enabled in (off, on):
            before = {name: t.clone() for name, t in got.items()}
            cuda.note(
                *columns, moved(arena, self.device), min_weight=0.1, **got, now=now, count=count, enabled=enabled
            )
            assert enabled is on or all(torch.equal(got[name], before[name]) for name in got)
        for m in range(used):
            s = int(slot[m])
            if s >= slots or (counted and weight[m] <= 0):
                continue
            nodes = 2.0 ** int(arena.level[s] - arena.top_level[arena.treelet[s]])
            x, y, z = (int(p * nodes * edge) % edge for p in position[m].tolist())
            want["reached"][s, (z * edge + y) * edge + x] = 7
            if weight[m] < 0.1:
                continue
            want["seen"][s] = torch.maximum(want["seen"][s], wanted[m])
            if wanted[m] >= arena.level[s] + 0.5:
                half = edge // 2
                octant = x // half + 2 * (y // half) + 4 * (z // half)
                want["wanting"][s, octant] += 1
                want["photos"][s, octant] |= 1 << int(photo[int(ray[m])] % 63)
        for name in want:
            assert torch.equal(got[name].cpu(), want[name]), name


class AdamChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    def _state(self, rng: np.random.Generator, shape: tuple[int, int]) -> list[Tensor]:
        """value, gradient, first, second, touched: some blocks untouched, some entries without gradient."""
        value = rng.normal(size=shape)
        gradient = 10.0 ** rng.uniform(-7, 2, shape) * rng.choice([-1.0, 0.0, 1.0], shape)
        gradient[rng.random(shape[0]) < 0.2] = 0.0
        first, second = rng.normal(size=shape) * 0.1, rng.random(shape)
        touched = torch.from_numpy((rng.random(shape[0]) < 0.6).astype(np.uint8))
        return [*(torch.from_numpy(a).float() for a in (value, gradient, first, second)), touched]

    @pytest.mark.parametrize("shape", [(0, 8), (1, 1), (77, 64), (45, 16), (7, 3), (300, 8), (33, 24)])
    def test_updates_are_the_twins(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        slow = self._state(rng, shape)
        fast = [t.clone().to(self.device) for t in slow]
        waiting = slow[1].clone()
        reference.adam(*slow, step=3, rate=1e-2)
        cuda.adam(*fast, step=3, rate=1e-2)
        for name, a, b in zip(("value", "gradient", "first", "second", "touched"), fast, slow, strict=True):
            torch.testing.assert_close(a.cpu(), b, atol=1e-7, rtol=3e-6, msg=name)
        assert waiting.numel() == 0 or not fast[4].any()

    def test_half_copies_and_device_scalars(self, rng: np.random.Generator) -> None:
        slow = self._state(rng, (50, 32))
        fast = [t.clone().to(self.device) for t in slow]
        touched = slow[4] != 0
        half = fast[0].half()
        before = half.clone()
        scalars = torch.tensor(adam_scalars(5, 3e-3), device=self.device)
        reference.adam(*slow, step=5, rate=3e-3)
        cuda.adam(*fast, half=half, scalars=scalars)
        torch.testing.assert_close(fast[0].cpu(), slow[0], atol=1e-7, rtol=3e-6)
        assert torch.equal(half, fast[0].half())
        assert torch.equal(half.cpu()[~touched], before.cpu()[~touched])
        assert not torch.equal(half, before)

    def test_a_disabled_step_only_clears(self, rng: np.random.Generator) -> None:
        slow = self._state(rng, (50, 32))
        fast = [t.clone().to(self.device) for t in slow]
        fast[1][3, 5], fast[4][3] = torch.nan, 1
        half = fast[0].half()
        before = [t.clone() for t in (*fast[:1], *fast[2:4], half)]
        touched = fast[4] != 0
        off = torch.zeros(1, dtype=torch.uint8, device=self.device)
        cuda.adam(*fast, step=1, rate=0.1, half=half, enabled=off)
        for now, then in zip((*fast[:1], *fast[2:4], half), before, strict=True):
            assert torch.equal(now, then)
        assert not fast[1][touched].any()
        assert not fast[4].any()
        reference.adam(*slow, step=1, rate=0.1, enabled=off.cpu())
        assert torch.equal(slow[0], before[0].cpu())
        assert not slow[4].any()
        on = torch.ones(1, dtype=torch.uint8, device=self.device)
        again = [t.to(self.device) for t in self._state(rng, (50, 32))]
        value = again[0].clone()
        cuda.adam(*again, step=1, rate=0.1, enabled=on)
        assert not torch.equal(again[0], value)
