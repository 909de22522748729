"""The trainer of one treelet: step after step, occupancy refreshed and nodes grown on the way."""

import logging
import math
from collections.abc import Callable

from infnerf_tiles.arrays import Bool
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.settings import TrainingSettings
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.device_step import DeviceStep
from infnerf_tiles.training.growth import Evidence
from infnerf_tiles.training.host_step import HostStep
from infnerf_tiles.training.objective import REACHED_SHIFT
from infnerf_tiles.training.pixel_store import StreamedPixels
from infnerf_tiles.training.pixels import PixelSet
from infnerf_tiles.training.refresh import reached_cells
from infnerf_tiles.training.schedule import GROWTH_FRACTIONS
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, Moments, TrainingState
from infnerf_tiles.training.workload import Counters, Workload

_log = logging.getLogger(__name__)


class Trainer:
    """Trains the own nodes of a `TrainingState` on a `PixelSet`.

    Random numbers come from (seed, step) alone, so a training that goes on from a checkpoint draws what it would have
    drawn. `progress` runs from 0 to 1 over `total_rays`.

    A state whose kernels read copies (`TrainingState.copies`, always so on CUDA) is trained by a `DeviceStep`, which
    never waits for the host; else by a `HostStep`.
    """

    def __init__(
        self,
        *,
        frame: Frame,
        state: TrainingState,
        shared: Shared,
        pixels: PixelSet | StreamedPixels,
        cameras: PosedCameras,
        settings: TrainingSettings,
        total_rays: int,
        seed: tuple[int, ...],
        grows: bool,
        min_points: int,
        warm: bool,
        depth: DepthTargets | None = None,
    ):
        self.grows, self.min_points = grows, min_points
        shared.to(state.device)
        shared.appearance.requires_grad_(False)
        for parameter in shared.parameters():
            parameter.requires_grad_(shared.trainable)
        self.work = Workload(
            frame=frame,
            state=state,
            shared=shared,
            pixels=pixels,
            cameras=cameras,
            settings=settings,
            total_rays=max(1, total_rays),
            seed=seed,
            warm=warm,
            depth=depth if depth is not None and depth.count and settings.lambda_depth > 0 else None,
            moments=Moments(state),
            evidence=Evidence(state.capacity, state.shape.occupancy_cells, state.device),
            counters=Counters(samples_per_ray=float(settings.samples_per_ray)),
        )
        self.stepper: HostStep | DeviceStep = DeviceStep(self.work) if state.copies else HostStep(self.work)

    @property
    def frame(self) -> Frame:
        """The scene's constants."""
        return self.work.frame

    @property
    def state(self) -> TrainingState:
        """What learns and what is around it."""
        return self.work.state

    @property
    def shared(self) -> Shared:
        """Decoder, appearance and background."""
        return self.work.shared

    @property
    def pixels(self) -> PixelSet | StreamedPixels:
        """What is drawn from."""
        return self.work.pixels

    @property
    def moments(self) -> Moments:
        """Gradients and Adam moments."""
        return self.work.moments

    @property
    def evidence(self) -> Evidence:
        """What samples said about nodes."""
        return self.work.evidence

    @property
    def seed(self) -> tuple[int, ...]:
        """Where random numbers come from, with the step."""
        return self.work.seed

    @property
    def step(self) -> int:
        """Steps done."""
        return self.work.counters.step

    @property
    def rays_done(self) -> int:
        """Rays to pixels drawn."""
        return self.work.counters.rays_done

    @property
    def samples_done(self) -> int:
        """Samples shaded."""
        return self.work.counters.samples_done

    @property
    def recent_error(self) -> float:
        """Decayed mean squared colour error; NaN before the first step."""
        return self.work.counters.recent_error

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return self.work.progress

    def run(self, on_step: Callable[["Trainer"], None] | None = None) -> None:
        """Train to the end; `on_step` is called after each step (checkpoints, progress)."""
        while self.progress < 1.0:
            self.train_step()
            if on_step is not None:
                on_step(self)
        if isinstance(self.stepper, DeviceStep):
            self.stepper.settle()

    def train_step(self) -> float:
        """One optimisation step; returns the batch's mean squared colour error, or the latest one known.

        NonFiniteError if the loss is not finite; nothing of that step is kept. A step on the device raises it a few
        dozen steps later, after none of which anything is kept either.
        """
        error = self.stepper.take()
        self._grow()
        return error

    def reached_cells(self) -> Bool | None:
        """Own cells that rays reached lately, bool [num_own, O, O, O]; None while coarse rays pass them by."""
        o = self.state.shape.occupancy_cells
        reached = reached_cells(self.work)
        return None if reached is None else reached.cpu().numpy().reshape(-1, o, o, o)

    def _grow(self) -> None:
        now = self.work.counters
        if not self.grows or now.growths >= len(GROWTH_FRACTIONS) or self.progress < GROWTH_FRACTIONS[now.growths]:
            return
        if isinstance(self.stepper, DeviceStep):
            self.stepper.check()
        now.growths += 1
        slots, octants = self.evidence.octants(self.min_points)
        self.evidence.forget()
        before = self.state.num_own
        added = self.state.add_children(slots, octants, self.frame.max_own_level)
        self.evidence.reached[before : before + added] = now.rays_done >> REACHED_SHIFT
        if added:
            _log.info("treelet %s: %d nodes grown, %d in all", self.state.top, added, self.state.num_own)


def psnr_of(error: float) -> float:
    """Decibels of a mean squared error."""
    return -10.0 * math.log10(max(error, 1e-12))
