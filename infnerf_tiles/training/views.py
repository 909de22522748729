"""Which photos can matter to some treelets, by their poses alone."""

import numpy as np

from infnerf_tiles.arrays import Bool, Int64
from infnerf_tiles.geometry.node_id import ancestor_keys, decode_keys, key_levels
from infnerf_tiles.geometry.views import may_see
from infnerf_tiles.training.context import Context

_MOST_CUBES = 512
"""More cubes than that are taken together, as the cubes above them."""
_SLACK = 1.01


def photos_in_reach(context: Context, photos: Int64, roots: Int64, margin: float = 0.0) -> Bool:
    """bool[n]: whether a ray of each photo (int64[n] rows) may pass one of the cubes (int64[k] keys of one level) or
    come within `margin` of their edges of it. On the safe side: where it says no, no ray does."""
    if not len(roots):
        return np.zeros(len(photos), np.bool_)
    root = context.store.header.root
    level = int(key_levels(roots[:1])[0])
    beyond = margin * root.node_edge(level)
    cubes = np.unique(roots)
    while len(cubes) > _MOST_CUBES:
        level -= 1
        cubes = np.unique(ancestor_keys(cubes, np.full(len(cubes), level)))
    _, cells = decode_keys(cubes)
    centres = root.to_world(((cells + 0.5) / 2.0**level).astype(np.float64))
    radius = np.sqrt(3.0) * (root.node_edge(level) / 2.0 + beyond) * _SLACK
    return may_see(context.photos.cameras, photos, centres, np.full(len(cubes), radius))
