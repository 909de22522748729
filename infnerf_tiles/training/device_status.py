"""What passes between host and device while steps run: scalars down, a small record up, neither waited for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.arrays import AnyArray

LOOK_EVERY = 32
"""Steps between two looks at the device's record; what is looked at is one look old."""
_RING = 4 * LOOK_EVERY  # the host is never more than two looks ahead of the device

RAYS, SAMPLES, PER_RAY, ERROR, FAILED, STEP = range(6)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The device's counters after some step."""

    rays: int
    """Rays to pixels drawn."""
    samples: int
    per_ray: float
    """Decayed mean of samples per ray."""
    error: float
    """Decayed mean squared colour error."""
    failed: int
    """First step whose loss was not finite, -1: none."""
    step: int
    """Steps done."""

    @classmethod
    def of(cls, values: Tensor | AnyArray) -> "Record":
        """From float64 [6] on the processor."""
        v = values.tolist()
        return cls(
            rays=int(v[RAYS]), samples=int(v[SAMPLES]), per_ray=v[PER_RAY], error=v[ERROR], failed=int(v[FAILED]),
            step=int(v[STEP]),
        )  # fmt: skip

    def values(self) -> list[float]:
        """The numbers in the device's order."""
        return [float(self.rays), float(self.samples), self.per_ray, self.error, float(self.failed), float(self.step)]


class Status:
    """The device's counters, float64 [6], and copies of them on their way to the host."""

    def __init__(self, device: torch.device, start: Record):
        self.values = torch.tensor(start.values(), dtype=torch.float64).to(device)
        self.pending: Record | None = None
        """A copy that was asked for before a restart."""
        self._on_cuda = device.type == "cuda"
        self._landing = torch.zeros((2, 6), dtype=torch.float64, pin_memory=self._on_cuda)
        self._event: torch.cuda.Event | None = None
        self._turn = 0

    def exchange(self) -> Record | None:
        """Ask for a copy of the counters as they will be now, and return the one asked for before."""
        before = self.await_pending()
        self._turn ^= 1
        landing = self._landing[self._turn]
        landing.copy_(self.values, non_blocking=True)
        if self._on_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self.pending = Record.of(landing)
        return before

    def await_pending(self) -> Record | None:
        """The copy that is on its way, which stays the pending one; None if none was asked for."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
            self.pending = Record.of(self._landing[self._turn])
        return self.pending

    def now(self) -> Record:
        """The counters as they are, waited for."""
        return Record.of(self.values.cpu())

    def set(self, record: Record, pending: Record | None) -> None:
        """Go on from these."""
        self.values.copy_(torch.tensor(record.values(), dtype=torch.float64))
        self._event, self.pending = None, pending


class StepInputs:
    """Scalars of the next step, written by the host while earlier steps still run."""

    def __init__(self, device: torch.device):
        self._values = torch.zeros(9, dtype=torch.int64, device=device)
        self._ring = torch.zeros((_RING, 9), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._words = self._ring.numpy()
        self._reals = self._words.view(np.float64)
        self._turn = 0
        self.key = self._values[0:1]
        """int64 [1]: what random numbers are made from."""
        self.coarser = self._values[1:2]
        """int64 [1]: pyramid level that finer pixels are left out for."""
        reals = self._values.view(torch.float64)
        self.rates = reals[2:5]
        """float64 [3]: `adam_scalars` of the features."""
        self.shared_rates = reals[5:8]
        """float64 [3]: `adam_scalars` of decoder, background and appearance."""
        self.directions = reals[8:9]
        """float64 [1]: share of the direction basis that the decoder sees, see `schedule.directions_seen`."""
        self.directions.fill_(1.0)

    def put(
        self,
        key: int,
        coarser: int,
        rates: tuple[float, float, float],
        shared_rates: tuple[float, float, float],
        directions: float = 1.0,
    ) -> None:
        """Send the scalars of the next step."""
        row, self._turn = self._turn, (self._turn + 1) % _RING
        self._words[row, :2] = key, coarser
        self._reals[row, 2:] = *rates, *shared_rates, directions
        self._values.copy_(self._ring[row], non_blocking=True)
