"""Colour transforms of photos that the seed stage did not see, fitted to what the scene shows at their places.

The seed stage learns from a sample of a large collection. Before the others' pixels teach any treelet, each photo gets
its transform by one ridge regression, towards the identity, of a small version of it on the scene's own picture.
"""

import logging

import numpy as np

from infnerf_tiles.arrays import Bool, Float64, UInt8
from infnerf_tiles.errors import PhotoError
from infnerf_tiles.metrics import fit_affine
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context

RIDGE = 1e-3
"""Pull towards the identity, relative to one pixel's share of the sum of squares."""
OPAQUE = 0.9
"""Opacity from which a pixel shows a surface and not what the background makes up."""
FEWEST_PIXELS = 64
"""Pixels that a fit needs; a photo with fewer keeps the identity."""

_log = logging.getLogger(__name__)


def fit_missing(context: Context, store: SceneStore, *, threads: int | None = None) -> int:
    """Fit the transforms of training photos that have none, and write them; returns how many were fitted.

    Some of the scene has to be trained. A photo whose surroundings are not, or that cannot be read, keeps the identity
    and is asked for again the next time.
    """
    arrays = store.read_small("appearance")
    affine, known = arrays["affine"].copy(), arrays["known"].astype(np.bool_)
    missing = np.flatnonzero(~known & ~context.photos.is_test)
    if not len(missing):
        return 0
    scene = Scene.of_store(store)
    renderer = Renderer(scene, threads=threads)
    fitted = 0
    try:
        for photo in missing.tolist():
            found = _fit(context, renderer, photo)
            if found is not None:
                affine[photo], known[photo] = found, True
                fitted += 1
    finally:
        renderer.cache.close()
    if fitted:
        store.write_small("appearance", {"affine": affine.astype(np.float32), "known": known.astype(np.uint8)})
    _log.info("appearance: fitted %d of %d photos that the seed stage did not see", fitted, len(missing))
    return fitted


def _fit(context: Context, renderer: Renderer, photo: int) -> Float64 | None:
    try:
        levels = context.read_pyramid(photo)
    except PhotoError as error:
        _log.warning("appearance: %s", error)
        return None
    image, mask = levels[-1]
    cameras = context.photos.cameras
    picture = renderer.render(cameras.camera(photo).scaled_down(1 << (len(levels) - 1)), cameras.camera_to_world[photo])
    usable: Bool = picture.transmittance < 1.0 - OPAQUE
    if mask is not None:
        usable = usable & mask
    if usable.sum() < FEWEST_PIXELS:
        return None
    return fit_affine(picture.rgb[usable].astype(np.float64), _linear(image)[usable], RIDGE)


def _linear(image: UInt8) -> Float64:
    colours: Float64 = image.astype(np.float64) / 255.0
    return colours
