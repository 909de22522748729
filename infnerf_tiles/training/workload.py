"""What a training works on and how far it has come: what the trainer and its kinds of steps share."""

import math
from dataclasses import dataclass

from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.settings import TrainingSettings
from infnerf_tiles.training.depth import DepthTargets
from infnerf_tiles.training.growth import Evidence
from infnerf_tiles.training.pixel_store import StreamedPixels
from infnerf_tiles.training.pixels import PixelSet
from infnerf_tiles.training.schedule import WARM_RATE, directions_seen, learning_rate
from infnerf_tiles.training.shared import Shared
from infnerf_tiles.training.state import Frame, Moments, TrainingState


@dataclass(kw_only=True)
class Counters:
    """How far a training has come."""

    step: int = 0
    rays_done: int = 0
    """Rays to pixels drawn so far; a step on the device makes it an estimate between looks at the device."""
    samples_done: int = 0
    samples_per_ray: float
    """Decayed mean."""
    growths: int = 0
    coarse_until: int = 0
    """Rays that had been drawn when footprints became the photos' own."""
    recent_error: float = math.nan
    """Decayed mean squared colour error."""


@dataclass(kw_only=True)
class Workload:
    """What is trained, on what and how."""

    frame: Frame
    state: TrainingState
    shared: Shared
    pixels: PixelSet | StreamedPixels
    cameras: PosedCameras
    settings: TrainingSettings
    total_rays: int
    seed: tuple[int, ...]
    """Random numbers come from (seed, step) alone."""
    warm: bool
    """Whether the nodes start from features of the seed stage; a cold training draws coarse pixels first."""
    depth: DepthTargets | None
    moments: Moments
    evidence: Evidence
    counters: Counters

    @property
    def progress(self) -> float:
        """Share of the training that is done: of its steps if their number is set, else of its rays."""
        if self.settings.steps is not None:
            return min(1.0, self.counters.step / self.settings.steps)
        return min(1.0, self.counters.rays_done / self.total_rays)

    @property
    def learns_exposure(self) -> bool:
        """Whether photos' transforms are found along with the decoder."""
        return self.shared.trainable and self.shared.learns_appearance

    @property
    def directions(self) -> float:
        """Share of the direction basis that the decoder sees now, see `directions_seen`."""
        return directions_seen(self.progress) if self.learns_exposure else 1.0

    @property
    def rate(self) -> float:
        """Learning rate of the features now."""
        start = max(self.settings.lr * (WARM_RATE if self.warm else 1.0), self.settings.lr_final)
        return learning_rate(self.progress, start, self.settings.lr_final)
