"""Which colour transform to draw with."""

import logging

from infnerf_tiles.arrays import Float32, Float64
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.rendering.scene import Scene

_log = logging.getLogger(__name__)


def appearance_of(scene: Scene, name: str) -> Float32 | Float64 | None:
    """The colour transform float[3, 4] that "mean", "none" (None) or a photo's name stands for.

    SettingsError for a name that no photo has.
    """
    if name == "none":
        return None
    if name == "mean":
        return scene.mean_affine
    if name not in scene.names:
        raise SettingsError(
            f"appearance: expected 'mean', 'none' or the name of one of the {len(scene.names)} photos, got {name!r}"
        )
    row = scene.names.index(name)
    if not scene.known[row]:
        _log.warning("the colour transform of photo %s is not known: the mean of the others is taken", name)
        return scene.mean_affine
    own: Float32 = scene.affine[row]
    return own
