"""Settings for scenes that train in seconds."""

TINY = [
    "octree.cells=16",
    "octree.treelet_height=3",
    "octree.max_level=3",
    "field.table_log2=8",
    "field.features=4",
    "field.hidden=16",
    "training.passes=0.5",
    "training.samples_per_step=8192",
    "training.samples_per_ray=24",
]
"""Settings with which a whole scene trains in seconds."""


def tiny(*more: str) -> list[str]:
    """TINY and further settings as options."""
    return [part for value in (*TINY, *more) for part in ("--set", value)]
