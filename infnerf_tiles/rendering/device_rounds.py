"""Rays of a table marched, shaded and composited in rounds that never wait for the host.

A round takes the rays in lanes a few samples on: as many as fit buffers of fixed size. Rays that have ended make room
for the next ones. The host reads how many are left every few rounds and a look late, and rather runs a few rounds for
nothing than lets the device wait. A sample's place, colour and order on its ray do not depend on lanes or rounds, so
neither does the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder
from infnerf_tiles.field.shading import decode_padded, decodes_alone
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena, MarchSettings, PackedSamples
from infnerf_tiles.kernels.lanes import GIVEN, LEFT, SAMPLES, Lanes, RayTable
from infnerf_tiles.rendering.waiting import Aborted

LANES = 1 << 17
"""Rays in work at a time on a GPU."""
FEWEST, MOST = 8, 64
"""Samples per ray and round; few, since what lies behind an opaque surface is shaded for nothing."""
LOOK_EVERY = 4
"""Rounds between two looks of the host."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What all rays of a table share."""

    origin: Tensor
    """float64 [3] on the device, unit cube."""
    footprint: float
    """Edge of a pixel's back-projection at distance 1."""
    offset: float
    """Shift of the step lattice."""
    lattice: MarchSettings


class Counts(NamedTuple):
    """given: rays that got a lane. left: lanes in work. samples: drawn so far."""

    given: int
    left: int
    samples: int


class Rounds:
    """Buffers for rounds on one device; one table at a time."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        features: int,
        has_above: bool,
        device: torch.device,
        lanes: int = LANES,
        fewest: int = FEWEST,
        most: int = MOST,
    ) -> None:
        """decoder: on the device. has_above: whether there is more than one treelet. lanes: rays in work at a time.
        fewest, most: samples per ray and round. None of these three changes the result."""
        self.device = device
        self.lanes = Lanes.allocate(lanes, device)
        self._decoder = decoder
        self._kernels = for_device(device)
        self._fewest, self._most = fewest, most
        capacity = lanes * fewest
        self._packed = PackedSamples.allocate(
            rays=lanes, capacity=capacity, capacity_above=capacity if has_above else 0, device=device
        )
        self._own = _Shaded(capacity, features, device)
        self._above = _Shaded(capacity, features, device) if has_above else None
        self._num_rays = torch.full((1,), lanes, dtype=torch.int32, device=device)
        self._ones = torch.ones(capacity if has_above else 0, device=device)
        self._looks = _Looks(device)
        alone = decodes_alone(decoder, self._kernels)
        self._weights = self._kernels.prepare_weights(decoder.weights()) if alone else None

    @torch.no_grad()
    def run(
        self,
        table: RayTable,
        rows: Tensor,
        arena: Arena,
        view: View,
        *,
        stop: float,
        end: int | None = None,
        abort: Callable[[], bool] | None = None,
    ) -> int:
        """Carry rays of the table, which have not ended, forward to lattice step `end` (not included; None: to their
        end), and return how many samples that took.

        rows: int32 [n], which rays. stop: a ray ends at its first sample with transmittance below this. abort: asked
        at every look; once it is true, Aborted is raised and the table is of no use.
        """
        num = rows.shape[0]
        if not num:
            return 0
        self.lanes.clear(view.origin, view.footprint, view.offset)
        self._looks.forget()
        in_work, since = min(num, self.lanes.num), 0
        while True:
            each = self._packed.capacity // in_work
            limit = min(max(each, self._fewest), self._most)
            self.round(table, rows, arena, view.lattice, limit, stop=stop, end=end)
            since += 1
            # few rays are done within a few rounds, which are short
            if since < LOOK_EVERY and each < self._most:
                continue
            since = 0
            if abort is not None and abort():
                raise Aborted
            known = self._looks.exchange(self.lanes.status)
            if known is None:
                continue
            if not known.left:
                return known.samples
            # rays that wait for a lane keep all of them busy; after that they only become fewer
            in_work = self.lanes.num if known.given < num else known.left

    def round(
        self,
        table: RayTable,
        rows: Tensor,
        arena: Arena,
        lattice: MarchSettings,
        limit: int,
        *,
        stop: float,
        end: int | None,
    ) -> None:
        """One round of at most `limit` samples a ray; nothing in here may ask the device for a value."""
        kernels, lanes, packed, own = self._kernels, self.lanes, self._packed, self._own
        kernels.refill(table, rows, lanes, stop=stop, end=end)
        kernels.march_packed(
            lanes.rays, arena, lattice, num_rays=self._num_rays, out=packed, start=lanes.start, limit=limit, adapt=True
        )
        kernels.encode_into(packed.position, packed.slot, packed.beta, arena, own.features, count=packed.count)
        self._decode(own, packed.ray, packed.count)
        if self._above is not None:
            above = self._above
            kernels.encode_into(
                packed.above_position, packed.above_slot, self._ones, arena, above.features, count=packed.above_count
            )
            self._decode(above, packed.ray.index_select(0, packed.above_sample), packed.above_count)
            kernels.mix_above(packed, own.sigma, own.colour, above.sigma, above.colour)
        kernels.accumulate(lanes, packed, arena, lattice, own.sigma, own.colour, stop=stop, end=end)

    def _decode(self, shaded: "_Shaded", ray: Tensor, count: Tensor) -> None:
        if self._weights is not None:
            self._kernels.decode_into(
                self._weights, shaded.features, self.lanes.basis, ray, shaded.sigma, shaded.colour, count=count
            )
        else:
            decode_padded(self._decoder, shaded.features, self.lanes.basis, ray, shaded.sigma, shaded.colour)


class _Shaded:
    """Features, density and colour of samples in buffers of fixed size."""

    def __init__(self, rows: int, features: int, device: torch.device) -> None:
        self.features = torch.zeros((rows, features), device=device)
        self.sigma = torch.zeros(rows, device=device)
        self.colour = torch.zeros((rows, 3), device=device)


class _Looks:
    """Copies of the lanes' status on their way to the host."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._landing = torch.zeros((2, 3), dtype=torch.int64, pin_memory=self._on_cuda)
        self._events: list[torch.cuda.Event] = []
        self._turn = 0
        self._asked = False

    def forget(self) -> None:
        """Begin anew."""
        self._asked = False

    def exchange(self, status: Tensor) -> Counts | None:
        """Ask for the status as it will be now, and return the one asked for before; None if none was.

        Waits for the older one: the host is never more than two looks ahead. On the CPU the two are the same.
        """
        if not self._on_cuda:
            return _counts(status)
        if not self._events:
            self._events = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        before, had = self._turn, self._asked
        self._turn ^= 1
        self._landing[self._turn].copy_(status, non_blocking=True)
        self._events[self._turn].record()
        self._asked = True
        if not had:
            return None
        self._events[before].synchronize()
        return _counts(self._landing[before])


def _counts(status: Tensor) -> Counts:
    values = status.tolist()
    return Counts(given=values[GIVEN], left=values[LEFT], samples=values[SAMPLES])
