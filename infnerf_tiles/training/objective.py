"""The sum that training minimises, and the constants that every kind of step shares."""

from torch import Tensor

from infnerf_tiles.settings import TrainingSettings
from infnerf_tiles.training.shared import Shared

SHARED_RATE = 0.3
"""Learning rate of decoder, background and appearance relative to the features'."""
IDENTITY_PULL = 0.01
"""Weight that keeps the photos' transforms near the identity: it fixes the factor that they share with the scene."""
STOP = 1e-4
"""Transmittance at which a training ray ends."""
REACHED_SHIFT = 8
"""Time in units of 256 rays, so that it fits 32 bits."""
TRANSPARENCY_POINTS = 2048
"""Random points of a step at which the field is asked to be transparent."""


def objective(
    settings: TrainingSettings,
    shared: Shared,
    *,
    colour: Tensor,
    points: Tensor | None = None,
    distortion: Tensor | None = None,
    transparency: Tensor | None = None,
) -> Tensor:
    """The weighted sum of a step's loss terms; what is None has no part in it."""
    loss = settings.lambda_rgb * colour
    if points is not None:
        loss = loss + settings.lambda_depth * points
    if shared.trainable:
        loss = loss + IDENTITY_PULL * shared.appearance.distance_from_identity()
    if distortion is not None:
        loss = loss + settings.lambda_distortion * distortion
    if transparency is not None:
        loss = loss + settings.lambda_transparency * transparency
    return loss
