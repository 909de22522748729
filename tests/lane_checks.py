"""What the kernels for rays in lanes must do, against their torch twins: run by Triton's interpreter and on a GPU."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from arenas import full_octree, random_arena, random_rays
from cuda_checks import MARCHED, moved
from march_checks import EDGE, SETTINGS
from torch import Tensor

from infnerf_tiles.field.decoder import direction_basis
from infnerf_tiles.kernels import cuda, reference
from infnerf_tiles.kernels.arena import Arena, PackedSamples, Rays
from infnerf_tiles.kernels.lanes import GIVEN, LEFT, SAMPLES, Lanes, RayTable

STATE = ("colour", "transmittance", "depth", "facts")


def field(position: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    """Some density and colour by place and node."""
    phase = position.double().sum(dim=1) * 40.0 + slot
    colour = torch.stack([torch.sin(phase + k) ** 2 for k in range(3)], dim=1)
    return (0.3 * torch.sin(7.0 * phase) ** 2).float(), colour.float()


class LanesChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    def scene(self, rng: np.random.Generator, rays: int) -> tuple[Arena, Rays]:
        """Nodes, and rays from one place among them that have some samples each."""
        while True:
            arena = random_arena(rng, full_octree(2), (0, 1, 2), shape=MARCHED, fill=0.5, empty_nodes=0.0)
            many = random_rays(rng, rays, edge=EDGE, footprint=0.08)
            found = Rays(
                origins=torch.from_numpy(rng.uniform(0.3, 0.7, (1, 3))).expand(rays, 3),
                directions=many.directions,
                footprint=many.footprint,
                offset=torch.full_like(many.offset, 0.5),
            )
            # rays of a rare place have hardly any
            if reference.march(found, arena, SETTINGS, adapt=True).count > 4 * rays:
                return arena, found

    def drawn(
        self, twin: object, arena: Arena, rays: Rays, device: torch.device, ends: tuple[int | None, ...], lanes: int,
        limit: int, stop: float,
    ) -> tuple[RayTable, int]:  # fmt: skip
        """Every ray drawn by a twin's kernels, cut at these steps, and the samples that took."""
        num = rays.origins.shape[0]
        directions = rays.directions.to(device)
        table = RayTable.fresh(directions, direction_basis(directions * EDGE))
        place = Lanes.allocate(lanes, device)
        packed = PackedSamples.allocate(
            rays=lanes, capacity=lanes * limit, capacity_above=lanes * limit, device=device
        )
        there = moved(arena, device)
        num_rays = torch.full((1,), lanes, dtype=torch.int32, device=device)
        samples = 0
        for end in ends:
            alive = (table.next_step >= 0) & (table.transmittance.double() >= stop)
            rows = torch.nonzero(alive).squeeze(1).int()
            place.clear(rays.origins[0].to(device), float(rays.footprint[0]), 0.5)
            for _ in range(10_000):
                twin.refill(table, rows, place, stop=stop, end=end)  # type: ignore[attr-defined]
                if not int(place.status[LEFT]):
                    break
                twin.march_packed(  # type: ignore[attr-defined]
                    place.rays, there, SETTINGS, num_rays=num_rays, out=packed, start=place.start, limit=limit,
                    adapt=True,
                )  # fmt: skip
                sigma, colour = field(packed.position, packed.slot)
                above = field(packed.above_position, packed.above_slot)
                twin.mix_above(packed, sigma, colour, *above)  # type: ignore[attr-defined]
                twin.accumulate(place, packed, there, SETTINGS, sigma, colour, stop=stop, end=end)  # type: ignore[attr-defined]
            assert int(place.status[GIVEN]) >= len(rows)
            samples += int(place.status[SAMPLES])
        assert num == len(table.next_step)
        return table, samples

    @pytest.mark.parametrize("stop", [0.0, 0.3])
    @pytest.mark.parametrize("ends", [(None,), (9, 21, None)])
    def test_rays_in_lanes_are_the_twins(
        self, rng: np.random.Generator, stop: float, ends: tuple[int | None, ...]
    ) -> None:
        arena, rays = self.scene(rng, 20 * self.scale)
        here = torch.device("cpu")
        want, samples = self.drawn(reference, arena, rays, here, (None,), 20 * self.scale, 16, stop)
        got, found = self.drawn(cuda, arena, rays, self.device, ends, 7 * self.scale, 5, stop)
        if not stop:
            assert abs(found - samples) <= 0.01 * samples
        for name in STATE:
            near = torch.isclose(getattr(got, name).cpu(), getattr(want, name), rtol=1e-4, atol=1e-4)
            # a rare ray may end one sample earlier, or meet another cell, by the last bit
            assert float(near.float().mean()) > 0.99, name
        assert samples > 10 * self.scale

    def test_lanes_and_rounds_change_no_bit(self, rng: np.random.Generator) -> None:
        arena, rays = self.scene(rng, 20 * self.scale)
        whole, _ = self.drawn(cuda, arena, rays, self.device, (None,), 32 * self.scale, 64, 0.2)
        for ends, lanes, limit in (((None,), 5 * self.scale, 3), ((13, None), 40 * self.scale, 8)):
            again, _ = self.drawn(cuda, arena, rays, self.device, ends, lanes, limit, 0.2)
            for name in STATE:
                assert torch.equal(getattr(again, name), getattr(whole, name)), name

    def test_no_rays(self, rng: np.random.Generator) -> None:
        _, rays = self.scene(rng, 1)
        place = Lanes.allocate(4, self.device)
        directions = rays.directions.to(self.device)
        table = RayTable.fresh(directions, direction_basis(directions * EDGE))
        cuda.refill(table, torch.zeros(0, dtype=torch.int32, device=self.device), place, stop=0.1)
        assert place.status.tolist() == [0, 0, 0]
        assert (place.ray == -1).all()
