"""Learning rate, growth and refresh times as pure functions of progress."""

GROWTH_FRACTIONS = tuple(round(0.04 * k, 2) for k in range(1, 13))
"""Shares of a training at which nodes are grown: one level each time, done by half-way so that the last can learn."""


def learning_rate(progress: float, first: float, last: float, *, warmup: float = 0.01) -> float:
    """Exponential decay from `first` to `last` over progress 0..1 after a short linear warm-up."""
    p = min(max(progress, 0.0), 1.0)
    rate = first * (last / first) ** p
    return float(rate * min(1.0, 0.1 + 0.9 * p / warmup)) if warmup > 0 else float(rate)


WARM_RATE = 0.1
"""Share of the learning rate that a training with features from the seed stage starts with. Adam's first steps are as
long as the rate whatever the gradient: at the full rate they would undo what is there."""

COARSE_FIRST = (0.03, 0.08, 0.15, 0.25)
"""Progress up to which a cold training pretends that pixels are 16, 8, 4 and 2 times as wide. Such rays take that many
times fewer samples and clear the air with coarse features, before finer ones would have to do it cell by cell."""


def coarsening(progress: float) -> int:
    """How many octaves wider than a photo's own pixels the footprints of a cold training are at this progress."""
    return sum(progress < until for until in COARSE_FIRST)


DIRECTIONS = (0.15, 0.3)
"""Progress of the seed stage at which the decoder begins to see from where a sample is looked at, and sees it in full.
Whoever flies one way with the sun behind and back against it has photos whose exposure goes with their direction. A
decoder that sees directions from the start learns such exposures as colours of the place, and what is then looked at
from elsewhere comes out too dark or too bright; without them only the photos' transforms can take exposures up."""


def directions_seen(progress: float) -> float:
    """Share, in [0, 1], of all directional parts of the direction basis that the decoder learns with."""
    start, full = DIRECTIONS
    return min(max((progress - start) / (full - start), 0.0), 1.0)


REACHED_PASSES = 0.05
"""A cell that no ray has reached for that many passes over the pixels, nor any cell beside it, lies behind opaque
matter and counts as empty: nobody sees what is there, and marching through it would cost most of a step."""

PRIOR_STEPS = 96
"""Steps during which the occupancy stays as it started: a fresh field is thin everywhere and would empty all cells."""


def refresh_due(step: int, every: int) -> bool:
    """Whether occupancy is refreshed after this step: four times as often up to step 1024, not at all at the start."""
    if step < PRIOR_STEPS:
        return False
    return step % (every if step >= 1024 else max(1, every // 4)) == 0
