"""Colour transforms of photos that the seed stage did not see, fitted to what the scene shows at their places.

The seed stage learns from a sample of a large collection. Before the others' pixels teach any treelet, each photo gets
its transform by one ridge regression, towards the identity, of a small version of it on the scene's own picture.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from infnerf_tiles.pipelines.cluster import Executor

from infnerf_tiles.arrays import Bool, Float64, UInt8
from infnerf_tiles.errors import DamagedPhotoError, PhotoError
from infnerf_tiles.metrics import fit_affine
from infnerf_tiles.rendering.accounts import smallest_working_set
from infnerf_tiles.rendering.renderer import Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.context import Context
from infnerf_tiles.training.tasks import Progress, TrainTask, open_context

RIDGE = 1e-3
"""Pull towards the identity, relative to one pixel's share of the sum of squares."""
OPAQUE = 0.9
"""Opacity from which a pixel shows a surface and not what the background makes up."""
FEWEST_PIXELS = 64
"""Pixels that a fit needs; a photo with fewer keeps the identity."""

_log = logging.getLogger(__name__)


_TASKS_EACH = 4
"""Tasks per worker: each opens the scene once, and they end at about the same time."""
_DRAWING_BYTES = 256 << 20
"""Most bytes of nodes that drawing takes, in a process that has no more to do."""


Fit = Callable[[Sequence[int]], Mapping[int, Float64]]
"""Rows of photos -> transform float64 [3, 4] of each that can be fitted."""


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """Photos of a scene. base: where scene, photos and settings are."""

    base: TrainTask
    photos: tuple[int, ...]
    """Rows of the photos."""


def fit_missing(context: Context, store: SceneStore, fit: Fit) -> int:
    """Fit the transforms of training photos that have none, and write them; returns how many were fitted.

    Some of the scene has to be trained. A photo whose surroundings are not, or that cannot be read, keeps the identity
    and is asked for again the next time.
    """
    arrays = store.read_small("appearance")
    affine, known = arrays["affine"].copy(), arrays["known"].astype(np.bool_)
    missing = np.flatnonzero(~known & ~context.photos.is_test)
    if not len(missing):
        return 0
    fitted = fit(missing.tolist())
    for photo, transform in fitted.items():
        affine[photo], known[photo] = transform, True
    if fitted:
        store.write_small("appearance", {"affine": affine.astype(np.float32), "known": known.astype(np.uint8)})
    _log.info("appearance: fitted %d of %d photos that the seed stage did not see", len(fitted), len(missing))
    return len(fitted)


def fit_on(executor: Executor, base: TrainTask) -> Fit:
    """What fits photos by tasks."""

    def run(photos: Sequence[int]) -> Mapping[int, Float64]:
        each = -(-len(photos) // (_TASKS_EACH * executor.capacity))
        runs = range(0, len(photos), each)
        for first in runs:
            task = FitTask(base=base, photos=tuple(photos[first : first + each]))
            executor.submit(f"appearance {first}", run_fit, task, trains=True)
        found: dict[int, Float64] = {}
        for _ in runs:
            outcome = executor.next()
            if outcome.error is not None:
                raise outcome.error
            found |= outcome.result
        return found

    return run


def run_fit(task: FitTask, progress: Progress | None = None) -> Mapping[int, Float64]:
    """Fit the transforms of some photos; returns those that could be fitted."""
    del progress
    with SceneStore.open(task.base.scene, "r+", sweep=False) as store:
        return fit_photos(open_context(task.base, store), task.photos, threads=task.base.threads)


def fit_photos(context: Context, photos: Sequence[int], *, threads: int | None = None) -> Mapping[int, Float64]:
    """See `Fit`."""
    scene = Scene.of_store(context.store)
    budget = min(_DRAWING_BYTES, scene.settings.rendering.memory_budget_bytes)
    budget = max(budget, smallest_working_set(scene.index, scene.shape, scene.octree))
    # it is a part of the training, whose device may be there where the one for pictures is not
    with Renderer(scene, budget, threads=threads, device=context.settings.training.device) as renderer:
        fits = {photo: _fit(context, renderer, photo) for photo in photos}
    return {photo: found for photo, found in fits.items() if found is not None}


def _fit(context: Context, renderer: Renderer, photo: int) -> Float64 | None:
    try:
        levels = context.read_pyramid(photo)
    except DamagedPhotoError:  # whoever needs its pixels says so
        return None
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
